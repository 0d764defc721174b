"""``python -m rlif_lightning`` and the script ``rlif``; ``status`` imports nothing heavy."""

import sys


def command() -> None:
    """Run the command line; what trains is imported when it is needed."""
    if sys.argv[1:2] == ["status"]:
        from rlif_lightning.running import status

        raise SystemExit(status.command(sys.argv[2:]))
    from rlif_lightning import cli

    cli.command()


if __name__ == "__main__":
    command()
