"""``TurnRounds``: episodes of a sampler that draws whole turns, from token ids to token ids.

In a round every row that goes on draws a turn, and then all of their environments answer. The
prompt of a turn is the ids of the row's context so far. Example, a prompt [p] with two rows:

    round 0    prompt [p], n=2                     drawn 5 <e> by row 0, and 7 7 <e> by row 1
               row 0 is told "higher" (h i); the episode of row 1 is over
    round 1    prompt [p 5 <e> h i], n=1           drawn 9 <e> by row 0

What shares a round depends on no clock. Seeds depend on (seed, rollout, problem, completion, turn).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts
from rlif_lightning.rollout.external_samples import Drawn, Draws, check_tokens, closed
from rlif_lightning.rollout.stop_strings import StopStrings
from rlif_lightning.rollout.turn_taking import Turns
from rlif_lightning.sampling import turn_seed

if TYPE_CHECKING:
    from rlif_lightning.rollout.draws_ahead import Asked
    from rlif_lightning.rollout.episodes import EpisodeDriver

Sample = Callable[[Sequence[list[int]], Sequence[dict[str, Any]]], list[list[Drawn]]]


class TurnRounds:
    """The episodes of one rollout. It makes no collective.

    Args:
        policy: whose tokens are drawn.
        sample: draws ``n`` turns for each of some prompts.
        asked: prompts, and a request for the first turns of each group.
        seed: of the run.
        driver: of the environments.

    Attributes:
        prompts: with the first observations.
    """

    def __init__(
        self, policy: PolicyModel, sample: Sample, asked: Asked, seed: int, driver: EpisodeDriver
    ):
        self.policy, self.sample, self.asked, self.seed = policy, sample, asked, seed
        self.prompts: Prompts = driver.begin(
            asked.prompts, asked.group_size, seed, asked.rollout_number
        )
        self.index = asked.prompts.index.tolist()
        self.prompt_ids = [ids.tolist() for ids in self.prompts.token_ids]
        rows, sampling = len(self.prompts) * asked.group_size, asked.sampling
        columns = sampling.max_new_tokens + driver.task.settings.max_observation_tokens
        self.ids = torch.zeros((rows, columns), dtype=torch.int64)
        stops = StopStrings(policy.tokenizer, sampling.stop)
        self.turns = Turns(driver, sampling, stops, policy.eos_ids, self.ids)
        self.lengths = torch.zeros(rows, dtype=torch.int64)  # [B], tokens so far
        self.ended = torch.zeros(rows, dtype=torch.bool)
        self.logprobs: list[list[float]] = [[] for _ in range(rows)]

    def run(self) -> Draws:
        """Play all episodes."""
        rows, draw = torch.arange(len(self.ids)), self._first_turns
        while len(rows):
            room = self.turns.room(rows, self.lengths[rows]).tolist()
            drawn = draw(rows.tolist(), room)
            check_tokens(self.policy, drawn)
            over = [self._keep(*each) for each in zip(rows.tolist(), drawn, room, strict=True)]
            whole, _ = self.turns.settle(rows, self.lengths[rows], torch.tensor(over))
            self.ended[rows] = whole
            rows, draw = self._observe(), self._later_turns
        rows = zip(self.ids, self.lengths.tolist(), self.logprobs, self.ended.tolist(), strict=True)
        completions = [Drawn(ids[:end].tolist(), found, ended) for ids, end, found, ended in rows]
        return Draws(completions, self.prompts, self.turns)

    def _first_turns(self, rows: Sequence[int], room: Sequence[int]) -> Sequence[Drawn]:
        requests = [{**request, "max_tokens": room[0]} for request in self.asked.requests]
        return by_row(self.sample(self.prompt_ids, requests), self.asked.group_size)

    def _later_turns(self, rows: Sequence[int], room: Sequence[int]) -> Sequence[Drawn]:
        prompts, requests = [], []
        for row, tokens in zip(rows, room, strict=True):
            problem, completion = divmod(row, self.asked.group_size)
            place = self.index[problem], completion, len(self.turns.texts[row])
            seed = turn_seed(self.seed, self.asked.rollout_number, *place)
            own = {"n": 1, "seed": seed, "max_tokens": tokens}
            requests.append({**self.asked.requests[problem], **own})
            so_far = int(self.lengths[row])
            prompts.append(self.turns.context(row, so_far, self.prompt_ids[problem]))
        return by_row(self.sample(prompts, requests), 1)

    def _keep(self, row: int, drawn: Drawn, room: int) -> bool:
        """Put a turn after a row's tokens; return whether it has ended by itself."""
        if self.asked.sampling.train_stop:
            drawn = closed(drawn, self.policy, room)
        start = int(self.lengths[row])
        self.lengths[row] = end = start + len(drawn.ids)
        self.ids[row, start:end] = torch.tensor(drawn.ids)
        self.logprobs[row] += drawn.logprobs
        return drawn.ended

    def _observe(self) -> torch.Tensor:
        """Put observations after the rows that go on; return these rows, ``[n]``."""
        waiting, self.turns.waiting = sorted(self.turns.waiting.items()), {}
        for row, follows in waiting:
            self.lengths[row] = self.turns.continue_row(row, int(self.lengths[row]), follows)
            self.logprobs[row] += [math.nan] * len(follows.ids)
        return torch.tensor([row for row, _ in waiting], dtype=torch.int64)


def by_row(groups: Sequence[Sequence[Drawn]], size: int) -> list[Drawn]:
    """Return the completions of groups, prompt-major; a group that was drawn once is copied."""
    # vLLM draws a greedy completion once; the copies of a group would be the same.
    whole = (each if len(each) == size else [*each] * size for each in groups)
    return [completion for group in whole for completion in group]
