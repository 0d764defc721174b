"""Ours in ``benchmarks/multi_turn.py``: rollouts of episodes by the native engine.

python benchmarks/multi_turn_ours.py [--again]

With ``--again`` the same engine draws single turns: each is a rollout whose prompts are all ids of
the episodes so far.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import multi_turn_work as work
import torch
from workload import Meter

from rlif_lightning.data.environment_settings import EnvironmentSettings
from rlif_lightning.data.prompt_format import PromptFormat, PromptRenderer
from rlif_lightning.data.tokenizer import prompt_encoder
from rlif_lightning.data.turns import environment_task
from rlif_lightning.environments.adapters import as_environment
from rlif_lightning.masked import extents
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts
from rlif_lightning.rollout import native
from rlif_lightning.rollout.generation import Generation
from rlif_lightning.sampling import Sampling


class PlannedEngine(native.NativeEngine):
    """An engine that ends turns where the plan says.

    Attributes:
        plan: tokens of each turn of each episode.
        episodes_of_rows: episode and turn of each row, of a rollout of single turns.
    """

    def __init__(self, plan: list[list[int]]):
        super().__init__()
        self.plan = plan
        self.episodes_of_rows: list[tuple[int, int]] = []


class PlannedGeneration(Generation):
    """The decoding loop, with planned tokens in place of the drawn ones at the end of a turn."""

    engine: PlannedEngine

    def draw(self) -> None:
        """Draw a token at each place; replace what the plan knows better."""
        super().draw()
        tokens = self.tokens[: self.places.used].clamp_(min=work.FIRST_WORD)
        for place, row in enumerate(self.places.owner[: self.places.used].tolist()):
            if self.turns is None:
                (episode, turn), begun = self.engine.episodes_of_rows[row], 0
            else:
                episode, turn = row, len(self.turns.texts[row])
                begun = int(self.turns.started[row])
            left = self.engine.plan[episode][turn] - (int(self.places.length[place]) - begun)
            is_last = turn == len(self.engine.plan[episode]) - 1
            if left == 1:
                tokens[place] = work.END
            elif left == 2 and not is_last:
                tokens[place] = work.CALL_ID


def prompts_of(policy: PolicyModel, a: argparse.Namespace) -> Prompts:
    """Return the problems of one rollout, with their environment."""
    rows, chat = work.problems(a), PromptFormat(chat=True)
    most = a.turns * (a.observation + 8)
    settings = EnvironmentSettings(
        "multi_turn_work.Scenery", max_turns=a.turns, max_observation_tokens=most
    )
    renderer = PromptRenderer("question", chat, policy.tokenizer)
    encode = prompt_encoder(policy.tokenizer, True)
    texts = [renderer.render(row) for row in rows]
    return Prompts(
        [torch.from_numpy(each).long() for each in encode(texts)],
        texts,
        {name: [row[name] for row in rows] for name in rows[0]},
        torch.arange(len(rows)),
        [renderer.messages(row) or [] for row in rows],
        environment_task(settings, renderer, encode, policy.tokenizer),
    )


def kept(engine: PlannedEngine, prompts: Prompts, a: argparse.Namespace) -> dict[str, int]:
    """Draw a rollout of episodes; return what was done."""
    most = max(map(sum, engine.plan))
    rollout = engine.generate(prompts, a.group_size, Sampling(max_new_tokens=most), 0)
    assert rollout.episodes is not None
    return {
        "turns": sum(len(episode.turns) for episode in rollout.episodes),
        "sampled": int(rollout.lengths.sum()),
        "observed": int((extents(rollout.mask) - rollout.lengths).sum()),
    }


def again(engine: PlannedEngine, prompts: Prompts, a: argparse.Namespace) -> dict[str, int]:
    """Draw each turn as a rollout of its own, whose prompts are all ids so far."""
    task, size = prompts.environment, a.group_size
    assert task is not None
    games = [as_environment(work.Scenery()) for _ in engine.plan]
    for number, game in enumerate(games):
        game.reset(0, **{name: column[number // size] for name, column in prompts.columns.items()})
    ids = [prompts.token_ids[number // size] for number in range(len(games))]
    live, turn = list(range(len(games))), 0
    done = {"turns": 0, "sampled": 0, "observed": 0}
    while live:
        engine.episodes_of_rows = [(episode, turn) for episode in live]
        texts = ["" for _ in live]
        first = replace(prompts, environment=None)
        later = Prompts([ids[each] for each in live], texts, {}, torch.tensor(live))
        given, number = (first, size) if turn == 0 else (later, 1)
        most = max(engine.plan[each][turn] for each in live)
        rollout, going = engine.generate(given, number, Sampling(max_new_tokens=most), turn), []
        for row, each in enumerate(live):
            drawn = rollout.completion_ids[row][rollout.mask[row]]
            done["turns"], done["sampled"] = done["turns"] + 1, done["sampled"] + len(drawn)
            step = games[each].step(rollout.texts[row])
            if not step.done:
                seen: Any = step.observation
                suffix = torch.tensor(task.suffix(seen, int(drawn[-1]), [work.END]))
                ids[each] = torch.cat([ids[each], drawn, suffix])
                done["observed"] += len(suffix)
                going.append(each)
        live, turn = going, turn + 1
    return done


def main() -> None:
    """Draw the rollouts and print one line of JSON."""
    a = work.read_flags(__doc__ or "")
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    native.Generation = PlannedGeneration  # type: ignore[misc]
    meter, draw = Meter(), again if a.again else kept
    with tempfile.TemporaryDirectory() as name:
        work.save_model(a, Path(name))
        policy = PolicyModel(Policy(name))
        policy.eos_ids = [work.END]
        engine, prompts = PlannedEngine(work.plan(a)), prompts_of(policy, a)
        engine.setup(policy, a.seed)
        meter.start()
        for _ in range(1 + a.rollouts):
            meter.begin_step()
            done = draw(engine, prompts, a)
            meter.end_step(done["sampled"])
        engine.discard_ahead()
    versions = {"torch": str(torch.__version__)}
    work.report(meter, "again" if a.again else "ours", versions, done)


if __name__ == "__main__":
    main()
