"""``python -m rlif_lightning``."""

from rlif_lightning.cli import main

if __name__ == "__main__":
    main()
