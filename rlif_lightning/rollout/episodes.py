"""``EpisodeDriver``: the environments of one rollout's rows; ``EpisodeEngine``: who keeps them.

Answers are waited for together, so that what shares a batch depends on no clock: a resumed run
computes the same batches.

Processes that share completions share episodes too. The first one alone has environments; the
others receive what these answered.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlif_lightning.data.environment_settings import EnvironmentSettings
from rlif_lightning.data.turns import Chat, Continuation, EnvironmentTask, Observation
from rlif_lightning.environments.base import Episode
from rlif_lightning.environments.pool import EnvironmentPool, episode_seed
from rlif_lightning.processes.collectives import first_process_result
from rlif_lightning.records import Prompts, Rollout
from rlif_lightning.rollout.engine import RolloutEngine
from rlif_lightning.rollout.turn_taking import Turns
from rlif_lightning.sampling import Sampling


class EpisodeDriver:
    """Begins, steps and ends the episodes of a rollout's B rows.

    Every method is a collective of the processes that share completions.

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
        seeds = [episode_seed(seed, rollout_number, number, 0) for number in index]

        def start(row: int) -> None:
            problem = row // group_size
            self.pool.start(row, seeds[problem], problems[problem])

        seen = self._answers(range(len(prompts) * group_size), start)
        tools, begun = tools_of(self.pool), []
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
        return self._answers(texts, lambda row: self.pool.act(row, texts[row]))

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

    def end(self, limits: Mapping[int, tuple[str, str | None]]) -> None:
        """End the episodes of some rows at limits.

        Args:
            limits: row -> how it stops, and the text of a turn that the limit cut; None = no turn
                was cut.
        """
        self._answers(limits, lambda row: self.pool.end(row, *limits[row]))

    def _answers(self, rows: Iterable[int], ask: Callable[[int], None]) -> dict[int, Observation]:
        """Ask the environments of the rows that go on; keep the episodes that are over then."""
        going = [row for row in rows if row not in self.episodes]
        if not going:
            return {}
        found, over = first_process_result(lambda: self._ask_all(going, ask))
        self.episodes.update(over)
        return found

    def _ask_all(
        self, rows: Sequence[int], ask: Callable[[int], None]
    ) -> tuple[dict[int, Observation], dict[int, Episode]]:
        """Ask, and wait for all answers; return observations, and episodes that are over."""
        for row in rows:
            ask(row)
        waiting, found, over = set(rows), {}, {}
        while waiting:
            for answer in self.pool.answers(wait=True):
                waiting.discard(answer.number)
                if answer.episode is None:
                    found[answer.number] = answer.observation
                else:
                    over[answer.number] = answer.episode
        return found, over


def tools_of(pool: EnvironmentPool) -> list[dict[str, Any]]:
    """Return JSON schemas of a pool's tools; the first process makes an instance to see them."""
    return first_process_result(lambda: pool.tools)


def open_pool(settings: EnvironmentSettings) -> EnvironmentPool:
    """Return the pool of an environment's settings."""
    names = ("max_turns", "workers", "step_seconds", "processes", "max_failed")
    return EnvironmentPool(
        settings.make, settings.arguments, **{name: getattr(settings, name) for name in names}
    )


class EpisodeEngine(RolloutEngine):
    """An engine that plays episodes and keeps their environments from rollout to rollout.

    Subclasses draw. ``Turns`` decides whose turn it is, what is observed and what ends.

    Attributes:
        pool: of environments; None before the first rollout that needs one.
        pool_settings: that the pool was opened with.
    """

    pool: EnvironmentPool | None = None
    pool_settings: EnvironmentSettings | None = None

    def check_environment(
        self, settings: EnvironmentSettings, sampling: Sampling
    ) -> list[dict[str, Any]]:
        if sampling.min_new_tokens:
            raise ValueError(
                f"sampling.min_new_tokens={sampling.min_new_tokens} is for single turns: under"
                " data.environment set it to 0"
            )
        if self.pool is None or self.pool_settings != settings:
            self.discard_ahead()
            self.pool, self.pool_settings = open_pool(settings), settings
            weakref.finalize(self, self.pool.close)
        return tools_of(self.pool)

    def discard_ahead(self) -> None:
        """Close the environments."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool.close()

    def episodes(self, prompts: Prompts, sampling: Sampling) -> EpisodeDriver | None:
        """Return what runs the environments of a rollout; None for single turns."""
        task = prompts.environment
        if task is None:
            return None
        self.check_environment(task.settings, sampling)
        assert self.pool is not None
        return EpisodeDriver(self.pool, task)

    def with_turns(self, rollout: Rollout, turns: Turns) -> Rollout:
        """Return a rollout of episodes (a collective: too many failures stop every process)."""
        turn_ids = turns.turn_ids[:, : rollout.mask.shape[1]].to(rollout.mask.device)
        episodes = [turns.driver.episodes[row] for row in range(len(turn_ids))]
        turns.driver.pool.check_failures(episodes, turn_ids.device)
        texts = ["\n".join(each) for each in turns.texts]
        known = {"texts": texts, "turn_ids": turn_ids, "episodes": episodes}
        if turns.settings.thoughts == "fork":
            starts = turns.context_starts[:, : rollout.mask.shape[1]]
            known["context_starts"] = starts.to(turn_ids.device)
        return replace(rollout, mask=turn_ids >= 0, **known)
