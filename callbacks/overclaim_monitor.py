"""OverclaimMonitor: whether a reward rises while what it stands for falls."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from callbacks.events import record_alarm, record_event
from rlif_lightning.data.described import Described
from rlif_lightning.module import RLIFModule
from rlif_lightning.processes.collectives import all_rank_sum

WINDOW = 20  # rollouts that trends are fitted to
HOLDS = 0.5  # a head says yes to a completion from this score on
CLEAR = 2.0  # a trend of more standard errors than this counts as one


def trend(values: Sequence[float]) -> tuple[float, float]:
    """Return the slope of a line through values by least squares, and its standard errors.

    Returns:
        The slope per value, and how many of its standard errors it is; 0 and 0 for fewer than
        three values.
    """
    if len(values) < 3:
        return 0.0, 0.0
    places = np.arange(len(values)) - (len(values) - 1) / 2
    numbers = np.asarray(values, dtype=np.float64)
    spread = float((places**2).sum())
    slope = float((places * numbers).sum()) / spread
    rest = numbers - numbers.mean() - slope * places
    error = math.sqrt(float((rest**2).sum()) / (len(values) - 2) / spread)
    if error <= 1e-12 * abs(slope):
        return slope, math.copysign(math.inf, slope) if slope else 0.0
    return slope, slope / error


class OverclaimMonitor(Described, Callback):
    """Logs where a proxy says yes and gold says no, and warns when the two part.

    Both are reward heads of the run, which say yes to a completion from a score of 0.5 on; a head
    with weight 0 is measured only. The monitor is that of two judges in Rubric Dropout. Logs
    ``overclaim/share``, and the trends of both mean scores over the last 20 rollouts,
    ``overclaim/proxy_slope`` and ``overclaim/gold_slope``. An alarm begins where the proxy's trend
    is more than 2 standard errors above 0 and gold's as many below, and ends where one is not.

    Args:
        proxy: name of the reward that stands for something.
        gold: name of the reward that measures what is meant.

    Raises:
        ValueError: both are one reward, the run has no reward of a name, or one has length=neutral.
    """

    def __init__(self, proxy: str, gold: str):
        if proxy == gold:
            raise ValueError(f"proxy={proxy!r}, gold={gold!r}: give two rewards")
        self.names = {"proxy": proxy, "gold": gold}
        self.history: dict[str, deque[float]] = {n: deque(maxlen=WINDOW) for n in self.names}
        self.is_parting = False

    def setup(self, trainer: Trainer, pl_module: RLIFModule, stage: str) -> None:
        """Refuse rewards that the run does not have, and scores that length has moved."""
        for name, reward in self.names.items():
            if reward not in pl_module.rewards.names:
                raise ValueError(
                    f"{name}={reward!r} of OverclaimMonitor is no reward of this run; known ones:"
                    f" {sorted(pl_module.rewards.names)}"
                )
            if pl_module.rewards.settings[reward].length == "neutral":
                raise ValueError(
                    f"rewards.{reward}.length=neutral moves scores by length, and OverclaimMonitor"
                    f" says yes from a score of {HOLDS:g} on: set length=keep"
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: RLIFModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the rollout's figures, and warn where the trends part."""
        proxy, gold = (outputs["rewards"][name].scores for name in self.names.values())
        both = ~(proxy.isnan() | gold.isnan())
        overclaims = both & (proxy >= HOLDS) & (gold < HOLDS)
        sums = torch.stack([overclaims.sum(), both.sum()]).double()
        above, count = all_rank_sum(sums).tolist()
        share = above / count if count else math.nan
        pl_module.log("overclaim/share", share, batch_size=1)
        trends = {}
        for name, reward in self.names.items():
            mean = float(trainer.callback_metrics[f"reward/{reward}/mean"])
            self.history[name].extend([] if math.isnan(mean) else [mean])
            trends[name] = trend(self.history[name])
            pl_module.log(f"overclaim/{name}_slope", trends[name][0], batch_size=1)
        self._judge(trainer, pl_module, trends, share)

    def _judge(
        self,
        trainer: Trainer,
        module: RLIFModule,
        trends: dict[str, tuple[float, float]],
        share: float,
    ) -> None:
        full = all(len(values) == WINDOW for values in self.history.values())
        parts = full and trends["proxy"][1] > CLEAR and trends["gold"][1] < -CLEAR
        if parts == self.is_parting:
            return
        self.is_parting = parts
        slopes = {f"{name}_slope": slope for name, (slope, _) in trends.items()}
        values = {"share": share, **slopes}
        text = (
            f"over {WINDOW} rollouts {self.names['proxy']!r} rises by"
            f" {slopes['proxy_slope']:+.2g} a rollout and {self.names['gold']!r} falls by"
            f" {slopes['gold_slope']:+.2g}; {share:.1%} of the completions overclaim. Read some;"
            " lower the learning rate or the weight of what is gained without merit."
        )
        if parts:
            record_alarm(trainer, module, "OverclaimMonitor", text, values)
            return
        said = f"{self.names['proxy']!r} and {self.names['gold']!r} no longer part"
        record_event(trainer, module, "OverclaimMonitor", "recovery", said, values)

    def state_dict(self) -> dict[str, Any]:
        """Return the mean scores of the last rollouts, and whether the alarm is on."""
        history = {name: list(values) for name, values in self.history.items()}
        return {"history": history, "is_parting": self.is_parting}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was made."""
        for name, values in state_dict["history"].items():
            self.history[name].clear()
            self.history[name].extend(values)
        self.is_parting = state_dict["is_parting"]
