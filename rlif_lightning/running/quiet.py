"""What the libraries below print and a user of this one can do nothing with, silenced by name."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings

# Lightning's warnings about what is on purpose here: prompts lie tokenised in memory, and a
# checkpoint holds the parameters after the optimiser's step.
EXPECTED_WARNINGS = (
    "The '.*_dataloader' does not have many workers",
    "Using ModelCheckpoint with manual optimization and every_n_train_steps",
    "Couldn't infer the batch indices fetched from your dataloader",
    "Total length of `ValidationLoader` across ranks is zero",  # every prompt was predicted before
    "The dirpath has changed",  # a resumed run logs into a folder of its own
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "`is_gradient_checkpointing` is deprecated",  # read by peft
    # Figures are reduced over the processes before they are logged.
    r"It is recommended to use `self.log\(.*sync_dist=True\)`",
)
ADVERTISEMENTS = (
    "💡 Tip: For seamless cloud",
    "TPU available: False",
    "GPU available: False",
)
LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")


def silence() -> None:
    """Hide expected warnings, advertisements, and progress bars that nobody watches.

    What the encoding of a terminal or a log lacks is shown as ``?``; it would end a run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            # A file in whose place a pipe was put tells no position.
            with contextlib.suppress(OSError):
                stream.reconfigure(errors="replace")
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if is_no_advertisement not in logger.filters:
            logger.addFilter(is_no_advertisement)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # it is imported later
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()


def is_no_advertisement(record: logging.LogRecord) -> bool:
    """Return whether a message of Lightning is worth a line."""
    return not record.getMessage().startswith(ADVERTISEMENTS)
