"""``ReuseRL``: a successful episode costs as many phrases as a shared dictionary needs for it."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlif_lightning.environments.base import Episode, Turn
from rlif_lightning.masked import MIN_SPREAD, masked_std
from rlif_lightning.processes.collectives import all_rank_objects, all_rank_sum
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.environment import EnvironmentReward, episodes_of
from rlif_lightning.rewards.phrases import Phrase, code_bits, learn_phrases, segments

DICTIONARIES = ("learned", "single")
MEMORY_BYTES = 2**17  # of checkpoints: the buffer and the phrases, compressed
SYMBOL_CHARACTERS = 32


class ReuseRL(EnvironmentReward):
    """Gives what the environment paid, minus ``strength * seg / max_turns`` where it was solved.

    ReuseRL (arXiv 2605.31509). ``seg`` is the fewest phrases of a dictionary that spell the
    episode's actions. Before a training rollout is scored, the dictionary is learned anew from its
    successes on all data ranks and from a buffer of earlier ones. Logs ``reuse/...``, and the
    column ``phrases`` of completion tables.

    Args:
        strength: lambda: of the penalty, >= 0; 0 = the environment's reward alone.
        dictionary: learned | single. single: every action costs a phrase, which is a penalty on the
            number of rounds.
        longest: symbols of a phrase, >= 2.
        buffer: successful episodes that are remembered, the latest ones; 0 = none.

    Raises:
        ValueError: an unknown name or a number out of range.
    """

    def __init__(
        self,
        strength: float = 0.2,
        dictionary: str = "learned",
        longest: int = 4,
        buffer: int = 256,
    ):
        super().__init__()
        if dictionary not in DICTIONARIES:
            known = ", ".join(DICTIONARIES)
            raise ValueError(f"dictionary={dictionary!r} is unknown; use one of {known}")
        for name, value, least in (
            ("strength", strength, 0),
            ("longest", longest, 2),
            ("buffer", buffer, 0),
        ):
            if not least <= value:
                raise ValueError(f"{name}={value} must be at least {least}")
        self.strength, self.dictionary = strength, dictionary
        self.longest, self.buffer = longest, buffer
        self.strings: list[Phrase] = []  # the buffer, the latest last
        self.phrases: list[Phrase] = []
        self.register_buffer("memory", torch.zeros(MEMORY_BYTES, dtype=torch.uint8))
        self._written = zlib.crc32(bytes(MEMORY_BYTES))

    def forward(self, rollout: Rollout) -> RewardOutput:
        """Score all episodes (a collective)."""
        output, episodes = super().forward(rollout), episodes_of(rollout)
        self._read()
        strings = [symbols(episode) for episode in episodes]
        solved = [episode.is_solved for episode in episodes]
        log = self._learn(rollout, strings, solved) if self.training else {}
        spelled = [segments(string, self.phrases, self.longest) for string in strings]
        penalties = torch.tensor(
            [
                len(each) / episode.max_turns if is_solved else 0.0
                for each, episode, is_solved in zip(spelled, episodes, solved, strict=True)
            ],
            dtype=torch.float64,
        ).to(output.scores.device)
        scores = (output.scores.double() - self.strength * penalties).float()
        log |= self._figures(rollout, output.scores, scores, spelled, solved)
        shown = [" | ".join("+".join(phrase) for phrase in each) for each in spelled]
        return replace(output, scores=scores, log={**output.log, **log}, columns={"phrases": shown})

    def _learn(
        self, rollout: Rollout, strings: Sequence[Phrase], solved: Sequence[bool]
    ) -> dict[str, float]:
        """Learn the dictionary and move the buffer on (a collective); return what to log."""
        numbers = rollout.completion_numbers(0).tolist()
        own = [
            (n, s) for n, s, is_solved in zip(numbers, strings, solved, strict=True) if is_solved
        ]
        found = sorted(pair for rank in all_rank_objects(own) for pair in rank)
        successes = [string for _, string in found]
        counts = Counter([*self.strings, *successes])
        num_symbols = len({symbol for string in counts for symbol in string})
        saved = torch.nan
        if num_symbols == 1:  # it costs no bits, so that no phrase saves any
            self.phrases = []
        elif self.dictionary == "learned" and num_symbols > 1:
            self.phrases, bits = learn_phrases(counts, num_symbols, self.longest)
            saved = 1 - bits / code_bits(counts, (), num_symbols, self.longest)
        self.strings = [*self.strings, *successes][-self.buffer :] if self.buffer else []
        self._write()
        return {"reuse/phrases": float(len(self.phrases)), "reuse/saved": saved}

    def _figures(
        self,
        rollout: Rollout,
        before: Tensor,
        after: Tensor,
        spelled: Sequence[Sequence[Phrase]],
        solved: Sequence[bool],
    ) -> dict[str, float]:
        """Return figures over all data ranks (a collective)."""
        shape = (rollout.num_prompts, rollout.group_size)
        spread = [
            masked_std(scores.double().view(shape), ~scores.isnan().view(shape), -1) > MIN_SPREAD
            for scores in (before, after)
        ]
        lengths = [
            (len(each), sum(map(len, each)))
            for each, is_solved in zip(spelled, solved, strict=True)
            if is_solved
        ]
        own = [
            float((spread[1] & ~spread[0]).sum()),
            rollout.num_prompts,
            sum(number for number, _ in lengths),
            sum(actions for _, actions in lengths),
            len(lengths),
        ]
        sums = all_rank_sum(torch.tensor(own, dtype=torch.float64, device=after.device))
        only, groups, number, actions, count = sums.tolist()
        return {
            "reuse/only_penalty": only / groups,
            "reuse/segments": number / count if count else torch.nan,
            "reuse/actions": actions / count if count else torch.nan,
        }

    def _read(self) -> None:
        """Take what a checkpoint has brought."""
        memory = bytes(self.get_buffer("memory").cpu().numpy())
        if zlib.crc32(memory) == self._written:
            return
        self._written = zlib.crc32(memory)
        size = int.from_bytes(memory[:4], "big")
        content = json.loads(zlib.decompress(memory[4 : 4 + size])) if size else ((), ())
        self.strings, self.phrases = ([tuple(each) for each in part] for part in content)

    def _write(self) -> None:
        """Keep buffer and phrases for the next checkpoint.

        Raises:
            ValueError: there is no room for so many episodes.
        """
        packed = zlib.compress(json.dumps([self.strings, self.phrases]).encode())
        memory = len(packed).to_bytes(4, "big") + packed
        if len(memory) > MEMORY_BYTES:
            raise ValueError(
                f"buffer={self.buffer}: that many episodes do not fit into {MEMORY_BYTES} bytes of"
                " a checkpoint; set a smaller buffer"
            )
        memory += bytes(MEMORY_BYTES - len(memory))
        self._written = zlib.crc32(memory)
        self.get_buffer("memory").copy_(torch.frombuffer(bytearray(memory), dtype=torch.uint8))


def symbols(episode: Episode) -> Phrase:
    """Return an episode's actions as symbols: the environment's names, or the first words."""
    return tuple(map(_symbol, episode.turns))


def _symbol(turn: Turn) -> str:
    named = turn.info.get("action")
    word = next(iter(turn.action.split()), "") if named is None else str(named)
    return word[:SYMBOL_CHARACTERS]
