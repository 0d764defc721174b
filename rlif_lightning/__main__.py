"""``python -m rlif_lightning`` and the script ``rlif``; ``status`` imports nothing heavy."""

import sys
from pathlib import Path


def command() -> None:
    """Run the command line; what trains is imported when it is needed."""
    if "" not in sys.path:
        # Import paths in settings begin at the current folder, which a script does not search.
        sys.path.append("")  # at the end it hides no package
    if sys.argv[1:2] == ["status"]:
        from rlif_lightning.running import status

        raise SystemExit(status.command(sys.argv[2:]))
    if sys.argv[1:2] in (["generate"], ["chat"]):
        from rlif_lightning.evaluation import ask
        from rlif_lightning.module import RLIFModule

        raise SystemExit(ask.command(sys.argv[1:], RLIFModule))
    own = str(Path(__file__).resolve().parent.parent)
    sys.path.insert(0, own)  # a package `callbacks` of the user's does not hide ours
    from rlif_lightning import cli

    sys.path.remove(own)
    cli.command()


if __name__ == "__main__":
    command()
