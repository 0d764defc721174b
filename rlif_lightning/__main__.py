"""``python -m rlif_lightning``."""

from rlif_lightning.cli import command

if __name__ == "__main__":
    command()
