"""Signals that ask a run to stop: the step is finished and saved, and the exit code says so.

Clusters send SIGTERM and SIGUSR1 before they stop a machine. Both end with exit code 75
(``EX_TEMPFAIL`` of sysexits.h: try again later); a process that was killed and saved nothing has
143. Control-C (SIGINT) saves as well and ends with 130; a second one ends at once. Lightning's own
handlers are not used: they run a collective inside the handler, which other processes may not have
reached, and end with exit code 0.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Trainer

from rlif_lightning.processes.collectives import all_process_sum
from rlif_lightning.running.lightning_internals import SignalConnector

TRY_AGAIN = 75
INTERRUPTED = 130
ASKING = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals(SignalConnector):
    """Records a signal that comes while training; elsewhere a signal acts at once."""

    def __init__(self, trainer: Trainer):
        super().__init__(trainer)
        self.asked = {TRY_AGAIN: False, INTERRUPTED: False}
        # A process whose torchrun is gone has another parent, and nothing would ever stop it.
        self.launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self.finishes_steps = False  # true while RunCheckpoints looks at the ends of steps

    def register_signal_handlers(self) -> None:
        """Put the handlers in place before each stage; ``teardown`` puts back the former ones."""
        self.asked = dict.fromkeys(self.asked, False)
        self._original_handlers = {
            number: signal.getsignal(number) for number in (*ASKING, signal.SIGINT)
        }
        for number in self._original_handlers:
            self._register_signal(number, self._record_signal)

    def _record_signal(self, number: int, frame: FrameType | None) -> None:
        code = INTERRUPTED if number == signal.SIGINT else TRY_AGAIN
        again, self.asked[code] = self.asked[code], True
        if self.finishes_steps and not (again and code == INTERRUPTED):
            print(
                f"{signal.Signals(number).name}: finishing the step, then saving",
                file=sys.stderr,
                flush=True,
            )
        elif code == INTERRUPTED:
            raise KeyboardInterrupt
        else:
            raise SystemExit(TRY_AGAIN)

    def agreed_signal(self) -> int | None:
        """Return the exit code that a signal to any process asks for, or None (a collective).

        That torchrun is gone counts as a signal to stop.
        """
        if self.launcher not in (None, os.getppid()) and not self.asked[TRY_AGAIN]:
            self.asked[TRY_AGAIN] = True
            print("torchrun is gone: saving, then ending", file=sys.stderr, flush=True)
        mine = torch.tensor([self.asked[code] for code in self.asked], dtype=torch.int64)
        votes = all_process_sum(mine.to(self.trainer.strategy.root_device)).tolist()
        return next((code for code, count in zip(self.asked, votes, strict=True) if count), None)


def exit_on_request() -> None:
    """End the process with the code for "start again" at a signal that comes before training."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(TRY_AGAIN)

    for number in ASKING:
        signal.signal(number, leave)
