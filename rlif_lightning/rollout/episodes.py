"""``EpisodeDriver``: the environments of one rollout's rows, and the prompts that they begin with.

Answers are waited for together, so that what shares a batch depends on no clock: a resumed run
computes the same batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rlif_lightning.data.environment_settings import EnvironmentSettings
from rlif_lightning.data.turns import Chat, Continuation, EnvironmentTask, Observation
from rlif_lightning.environments.base import Episode
from rlif_lightning.environments.pool import EnvironmentPool, episode_seed
from rlif_lightning.records import Prompts


class EpisodeDriver:
    """Begins, steps and ends the episodes of a rollout's B rows.

    Args:
        pool: runs the environments.
        task: encodes what they say.

    Attributes:
        episodes: row -> its episode, once that is over.
    """

    def __init__(self, pool: EnvironmentPool, task: EnvironmentTask):
        self.pool, self.task = pool, task
        self.episodes: dict[int, Episode] = {}
        self.chats: dict[int, Chat | None] = {}

    def begin(self, prompts: Prompts, group_size: int, seed: int, rollout_number: int) -> Prompts:
        """Reset an environment for each row; return the prompts with the first observations.

        A group plays the same game: its seed is of (run, rollout, problem). An episode whose reset
        failed is over, and its row draws one turn that nobody answers.

        Raises:
            ValueError: a group's environments begin with different observations.
        """
        problems = [
            dict(zip(prompts.columns, values, strict=True))
            for values in zip(*prompts.columns.values(), strict=True)
        ] or [{} for _ in prompts.texts]
        index = prompts.index.tolist()
        for row in range(len(prompts) * group_size):
            problem = row // group_size
            made = episode_seed(seed, rollout_number, index[problem], 0)
            self.pool.start(row, made, problems[problem])
        seen = self._answers(range(len(prompts) * group_size))
        tools, begun = self.pool.tools, []
        for number, problem in enumerate(problems):
            rows = range(number * group_size, (number + 1) * group_size)
            first = [seen[row] for row in rows if row in seen]
            if any(each != first[0] for each in first):
                raise ValueError(
                    f"data.environment.make={self.task.settings.make!r}: reset returned different"
                    f" observations for equal seeds and problem {index[number]}: {first[0]!r:.100}"
                    f" and {next(each for each in first if each != first[0])!r:.100}; let all that"
                    " is random depend on its argument `seed`"
                )
            text, ids, messages = self.task.prompt(problem, first[0] if first else "", tools)
            begun.append((text, ids, messages))
            self.chats |= {row: self.task.chat(problem, text, messages, tools) for row in rows}
        texts, ids, messages = zip(*begun, strict=True)
        device = prompts.token_ids[0].device
        has_chat = prompts.messages is not None
        return replace(
            prompts,
            token_ids=[each.to(device) for each in ids],
            texts=list(texts),
            messages=[each or [] for each in messages] if has_chat else None,
        )

    def act(self, texts: Mapping[int, str]) -> dict[int, Observation]:
        """Step the environments of some rows; return the observations of those that go on."""
        going = [row for row in texts if row not in self.episodes]
        for row in going:
            self.pool.act(row, texts[row])
        return self._answers(going)

    def follow(
        self, row: int, words: str, seen: Observation, last: int, ends: Sequence[int]
    ) -> Continuation:
        """Return the ids between a row's turn and its next one.

        Args:
            row: of the episode.
            words: text of the turn.
            seen, last, ends: as of ``EnvironmentTask.suffix``.
        """
        chat = self.chats[row]
        if chat is None:
            return Continuation(self.task.suffix(seen, last, ends))
        return chat.follow(words, seen, last, ends)

    def end(self, row: int, stop: str, unfinished: str | None = None) -> None:
        """End an episode at a limit; ``unfinished`` is the text of a turn that the limit cut."""
        if row not in self.episodes:
            self.pool.end(row, stop, unfinished)
            self._answers([row])

    def _answers(self, rows: Sequence[int]) -> dict[int, Observation]:
        """Wait for some rows; keep the episodes that are over."""
        waiting, found = set(rows), {}
        while waiting:
            for answer in self.pool.answers(wait=True):
                waiting.discard(answer.number)
                if answer.episode is None:
                    found[answer.number] = answer.observation
                else:
                    self.episodes[answer.number] = answer.episode
        return found


def open_pool(settings: EnvironmentSettings) -> EnvironmentPool:
    """Return the pool of an environment's settings."""
    names = ("max_turns", "workers", "step_seconds", "processes", "max_failed")
    return EnvironmentPool(
        settings.make, settings.arguments, **{name: getattr(settings, name) for name in names}
    )
