"""What the command line can build by a short name."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, rlif_lightning, rlif_lightning.cli
modules = rlif_lightning._MODULES
print(*(name for name, module in modules.items() if f"rlif_lightning.{module}" not in sys.modules))
"""


def test_the_command_line_has_imported_every_public_class():
    """A class that nobody has imported is unknown by its short name."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert not done.stdout.split()
