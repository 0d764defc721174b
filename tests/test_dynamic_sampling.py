"""Dynamic sampling: which groups have signal, what is drawn in their place, and what is left."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from harness import launches
from harness.files import ROOT
from harness.python_runs import NAME, data
from harness.rollouts import handmade
from harness.runs import ONE, assert_same, differences, fit, metrics, parameters, rows, saving
from rlif_lightning.data.loaders import EncodedSplit
from rlif_lightning.data.sources import ArithmeticProblems
from rlif_lightning.judges.asking import cost_of
from rlif_lightning.judges.base import Request
from rlif_lightning.learning.advantages import GDPO
from rlif_lightning.learning.dynamic_sampling import (
    DynamicDraws,
    DynamicSampling,
    further_problem,
    further_problems,
    groups_with_signal,
)
from rlif_lightning.learning.objectives import Clipped
from rlif_lightning.learning.rollout_advantages import score_rollout, without_dropped
from rlif_lightning.learning.scored_rollouts import (
    RolloutSource,
    ScoredRollout,
    assembled,
    with_cost_of,
)
from rlif_lightning.learning.token_budget import TokenBudget
from rlif_lightning.learning.update import UpdatePlan
from rlif_lightning.learning.updater import OptimizerCalls, Updater
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts, RewardOutput, Rollout
from rlif_lightning.rewards import (
    ClusterVote,
    DropTruncated,
    Gate,
    GoldAnswer,
    Random,
    RewardHead,
    RewardSet,
    SelfCertainty,
    WeightedReward,
)
from rlif_lightning.rollout.engine import RolloutEngine
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling

NAN = math.nan
SIZE = 2


def problems(size: int) -> EncodedSplit:
    """Training problems with the embedded model's tokens, as a run's loader has them."""
    source = ArithmeticProblems(size=size, validation_size=4, min_terms=3, max_terms=4)
    module = data(source=source, answer_column="answer")
    module.setup("fit")
    split = module.split("train")
    assert split is not None
    return split


class Scripted(RolloutEngine):
    """A sampler whose completions of a problem are all "1", or "1" and "2" where it is mixed."""

    def __init__(self, mixed: set[int]):
        self.mixed = mixed
        self.drawn: list[list[int]] = []

    def setup(self, policy: Any, seed: int) -> None:
        pass

    def generate(
        self, prompts: Prompts, group_size: int, sampling: Sampling, rollout_number: int
    ) -> Rollout:
        index = prompts.index.tolist()
        self.drawn.append(index)
        texts = [text for i in index for text in (["1", "2"] if i in self.mixed else ["1", "1"])]
        made = handmade(texts, group_size)
        return replace(made, prompts=prompts)


class Marked(RewardHead):
    """Scores a completion by its text, and logs its calls."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        scores = torch.tensor([float(text) for text in rollout.texts])
        keep = torch.ones(len(scores), dtype=torch.bool)
        weights = rollout.prompts.index.double()
        return RewardOutput(scores, keep, {"mine": len(scores)}, weights, list(rollout.texts))


def scripted(size: int, mixed: set[int], max_draws: int, **heads: RewardHead) -> DynamicDraws:
    rewards = RewardSet(
        {name: WeightedReward(head) for name, head in (heads or {"mine": Marked()}).items()}
    )
    source = RolloutSource(Scripted(mixed), rewards, Sampling(), SIZE)
    return DynamicDraws(DynamicSampling(max_draws=max_draws), source, problems(size), seed=3)


def drawn(draws: DynamicDraws) -> list[list[int]]:
    assert isinstance(draws.source.engine, Scripted)
    return draws.source.engine.drawn


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1.0, 1.0, 1.0], False),
        ([0.0, 1.0, 1.0], True),
        ([NAN, 1.0, 1.0], False),  # a score that does not apply differs from none
        ([NAN, 1.0, 0.0], True),
        ([NAN, NAN, 1.0], False),
        ([NAN, NAN, NAN], False),
        ([0.1, 0.1 + 1e-7, 0.1], False),  # rounding
        ([0.1, 0.1 + 1e-5, 0.1], True),
    ],
)
def test_a_group_has_signal_where_scores_differ(scores, expected):
    outputs = {"a": RewardOutput(torch.tensor([*scores, 5.0, 5.0, 5.0]))}
    assert groups_with_signal(outputs, ["a"], 3).tolist() == [expected, False]


def test_signal_is_what_gives_an_advantage():
    """Restated by the estimator: over random scores with ties and gaps."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 2, (200, 3), generator=generator).float()
    scores[torch.rand(200, 3, generator=generator) < 0.3] = NAN
    advantages = GDPO()(scores.unsqueeze(0), torch.ones(1), torch.ones(200, 3))
    found = groups_with_signal({"a": RewardOutput(scores.flatten())}, ["a"], 3)
    assert torch.equal(found, (advantages != 0).any(-1))
    assert 20 < int(found.sum()) < 180


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["3", "3.0", "3"], False),  # all agree
        (["3", "5", "7"], False),  # nobody agrees: every share is 1/3
        (["", "none", "?"], False),  # nobody answers
        (["3", "", "3"], True),  # one has no answer
        (["3", "", ""], False),  # too few for a vote
        (["3", "3", "5"], True),
    ],
)
def test_signal_of_a_vote(texts, expected):
    outputs = RewardSet({"vote": WeightedReward(ClusterVote())})(handmade(texts, 3))
    assert groups_with_signal(outputs, ["vote"], 3).tolist() == [expected]


@pytest.mark.slow
def test_signal_of_gold_answers_and_of_completions_that_stay():
    """Right and wrong, all right, a gold answer that cannot be read; a drop leaves one alone."""
    rollout = handmade(["1", "2", "1", "1", "1", "2"], 2, answer=["1", "1", r"\frac{\sqrt{5"])
    rewards = {"gold": WeightedReward(GoldAnswer()), "cut": WeightedReward(DropTruncated())}
    ended = torch.ones(6, dtype=torch.bool)
    outputs = RewardSet(rewards)(replace(rollout, ended=ended))
    assert groups_with_signal(outputs, ["gold", "cut"], 2).tolist() == [True, False, False]
    ended[1] = False
    outputs = RewardSet(rewards)(replace(rollout, ended=ended))
    assert groups_with_signal(outputs, ["gold", "cut"], 2).tolist() == [False] * 3


def test_places_and_their_problems_by_hand():
    """The example of the module's docstring, for both data ranks."""
    order = [3, 5, 2]
    found = [[further_problem(order, draw, place, 4) for place in range(4)] for draw in (1, 2)]
    assert found == [[3, 5, 2, None], [None] * 4]


def test_further_problems_are_all_others_in_a_counted_order():
    found = further_problems(np.arange(10, 20), [12, 15, 99], seed=1, rollout_number=4)
    assert sorted(found.tolist()) == [0, 1, 3, 4, 6, 7, 8, 9]  # positions, not numbers
    words = np.random.SeedSequence([1, 4], spawn_key=(5,))
    whole = np.random.default_rng(words).permutation(10).tolist()
    assert found.tolist() == [each for each in whole if each not in (2, 5)]
    other = further_problems(np.arange(10, 20), [12, 15], seed=1, rollout_number=5)
    assert other.tolist() != found.tolist()


def test_a_rollout_by_hand():
    """Four places, nine problems: places 1 and 2 have no signal; place 1 is filled by its second
    problem, place 2 by its first.
    """
    draws, batch = scripted(12, set(), 4), [4, 1, 0, 6]
    order = further_problems(np.arange(12), batch, 3, 7).tolist()
    assert isinstance(draws.source.engine, Scripted)
    draws.source.engine.mixed = {4, 6, order[2], order[4 + 1]}
    assert draws.problems is not None
    found = draws.draw(draws.problems.batch(batch), 7)
    assert drawn(draws) == [batch, [order[1], order[2]], [order[5]]]
    assert found.rollout.prompts.index.tolist() == [4, order[5], order[2], 6]
    assert list(found.rollout.texts) == ["1", "2"] * 4
    whole = [draws.problems.batch([place]) for place in found.rollout.prompts.index.tolist()]
    assert found.rollout.prompts.texts == [each.texts[0] for each in whole]
    assert found.rollout.prompts.columns["answer"] == [each.column("answer")[0] for each in whole]
    assert found.outputs["mine"].scores.tolist() == [1.0, 2.0] * 4
    assert without_dropped(found.rollout, found.outputs)[0].mask.any(-1).all()
    assert found.figures["dynamic/signal"] == 2 / 4
    assert found.figures["dynamic/extra_groups"] == 3
    assert found.figures["dynamic/empty_places"] == 0


def test_costs_and_figures_by_hand():
    """Completions have 1, 2, 3, 1, ... tokens: groups of a draw have 3, 4, 5, 3 tokens."""
    draws, batch = scripted(12, set(), 3), [4, 1, 0, 6]
    order = further_problems(np.arange(12), batch, 3, 0).tolist()
    assert isinstance(draws.source.engine, Scripted)
    draws.source.engine.mixed = {6, order[1]}
    assert draws.problems is not None
    found = draws.draw(draws.problems.batch(batch), 0)
    # Places 0, 1, 2 draw again, then 0 and 2; those two stay empty.
    assert drawn(draws) == [batch, [order[0], order[1], order[2]], [order[4], order[6]]]
    figures = {name: float(value) for name, value in found.figures.items()}
    assert figures == {
        "dynamic/signal": 1 / 4,
        "dynamic/extra_groups": 5,
        "dynamic/empty_places": 2,
        # 15 + 12 + 7 tokens were drawn; place 1 has 4 of the second draw, place 3 3 of the first.
        "dynamic/discarded_tokens": 34 - 4 - 3,
        # Of the 15 tokens of the first draw, half of 0.0 + 0.7 + 2.1 + 0.9 + 2.5 + 4.8 + 1.8 + 4.3.
        "dynamic/first_entropy": pytest.approx(8.55 / 15, abs=1e-6),
        "reward/mine/first_mean": 9 / 8,  # seven ones and a two
    }
    assert int(found.num_tokens) == 34
    output = found.outputs["mine"]
    assert output.log == {"mine": 8}  # of the first draw
    assert output.keep_mask is not None
    assert output.keep_mask.tolist() == [False] * 2 + [True] * 2 + [False] * 2 + [True] * 2
    assert output.answers == ["1", "1", "1", "2", "1", "1", "1", "2"]
    assert output.group_weight_factor is not None
    assert output.group_weight_factor.tolist() == [4, order[1], 0, 6]


def test_what_judges_cost_is_that_of_all_draws():
    """Each of 2 draws of 4 and 3 groups asks about all of its completions; half of one failed."""
    seen = {"judge/calls": 1.0, "judge/prompt_tokens": 5.0, "judge/completion_tokens": 2.0}
    logs = [
        {**seen, "judge/questions": n, "judge/failed": f, "time/judge": 0.5, "judge/unparsed": 0.25}
        for n, f in ((8.0, 0.5), (6.0, 0.0))
    ]
    draws = [
        ScoredRollout(
            handmade([""] * 2, 2),
            {"judge": RewardOutput(torch.zeros(2), log=log)},
            torch.tensor(0),
            0.0,
        )
        for log in logs
    ]
    log = with_cost_of(draws, draws[0].outputs)["judge"].log
    assert log == pytest.approx(
        {
            "judge/calls": 2, "judge/prompt_tokens": 10, "judge/completion_tokens": 4,
            "judge/questions": 14, "judge/failed": 4 / 14, "time/judge": 1, "judge/unparsed": 0.25,
        }
    )  # fmt: skip


def test_the_price_of_several_askings_is_added():
    seen = {"judge/calls": 1.0, "judge/prompt_tokens": 5.0, "judge/completion_tokens": 2.0}
    seen |= {"judge/questions": 1.0, "judge/failed": 0.0, "time/judge": 0.5}
    assert cost_of([{**seen, "judge/cost": 0.25}, seen, {**seen, "judge/cost": 0.5}])[
        "judge/cost"
    ] == pytest.approx(0.75)
    assert "judge/cost" not in cost_of([seen])


@pytest.mark.full  # what judges cost is that of all draws: above
def test_a_run_counts_the_questions_of_all_draws(tmp_path):
    rule = {"class_path": "RuleJudge", "init_args": {"rule": "test_dynamic_sampling.middling"}}
    head = {"class_path": "JudgeHead", "init_args": {"judge": rule, "template": "{completion}"}}
    heads = {"vote": {"head": "ClusterVote"}, "judge": {"head": head, "weight": 0.0}}
    own = [f"--model.rewards={json.dumps(heads)}", dynamic(heads=["vote"], max_draws=2)]
    fit(tmp_path, *own, NO_VALIDATION)
    made = [row for row in metrics(tmp_path) if row.get("judge/questions")]
    extra = [float(row["dynamic/extra_groups"]) for row in made]
    assert max(extra) > 0
    assert [float(row["judge/questions"]) for row in made] == [4 * (8 + more) for more in extra]


def middling(request: Request) -> str:
    return "Score: 3"


@pytest.mark.parametrize(
    ("size", "max_draws", "expected"),
    [
        (12, 1, [4]),  # only skips
        (12, 3, [4, 4, 4]),
        (12, 99, [4, 4, 4]),  # eight others: two draws
        (9, 99, [4, 4, 1]),  # five others
        (4, 99, [4]),
    ],
)
def test_draws_are_bounded_and_end_with_the_problems(size, max_draws, expected):
    draws = scripted(size, set(), max_draws)
    assert draws.problems is not None
    found = draws.draw(draws.problems.batch([0, 1, 2, 3]), 0)
    assert [len(each) for each in drawn(draws)] == expected
    assert len({i for each in drawn(draws) for i in each}) == sum(expected)  # none twice
    assert found.figures["dynamic/empty_places"] == 4
    assert found.figures["dynamic/signal"] == 0
    rollout, outputs = without_dropped(found.rollout, found.outputs)
    assert not rollout.mask.any()
    assert outputs["mine"].scores.isnan().all()


def test_heads_count_a_rollout_once_and_keep_their_modes():
    coin, inner = Random(), torch.nn.Linear(1, 1).eval()
    coin.add_module("inner", inner)
    draws = scripted(12, {5}, 3, vote=ClusterVote(), coin=coin)
    draws = replace(draws, settings=DynamicSampling(["vote"], 3))
    assert draws.problems is not None
    draws.draw(draws.problems.batch([0, 1, 2, 3]), 0)
    assert len(drawn(draws)) == 3
    assert int(coin.calls) == 1
    assert coin.training
    assert not inner.training


@pytest.fixture(scope="module")
def policy() -> PolicyModel:
    return PolicyModel(Policy(NAME, dtype="float64"))


def sampled(policy: PolicyModel, size: int, settings: DynamicSampling) -> DynamicDraws:
    engine, sampling = NativeEngine(), Sampling(max_new_tokens=24)
    engine.setup(policy, seed=5)
    heads = {"vote": WeightedReward(ClusterVote()), "gold": WeightedReward(GoldAnswer(), weight=0)}
    source = RolloutSource(engine, RewardSet(heads, "answer"), sampling, 4)
    return DynamicDraws(settings, source, problems(size), seed=5)


@pytest.mark.slow
def test_an_assembled_rollout_is_the_one_drawn_at_once(policy):
    """Tokens, texts, scores and, to rounding, statistics."""
    draws = sampled(policy, 32, DynamicSampling(max_draws=4))
    assert draws.problems is not None
    found = draws.draw(draws.problems.batch(list(range(8))), 2)
    assert float(found.figures["dynamic/extra_groups"]) > 0
    index = found.rollout.prompts.index.tolist()
    direct = draws.source.draw(draws.problems.batch(index), 2)
    assert torch.equal(found.rollout.completion_ids, direct.rollout.completion_ids)
    assert torch.equal(found.rollout.mask, direct.rollout.mask)
    assert torch.equal(found.rollout.ended, direct.rollout.ended)
    assert found.rollout.texts == direct.rollout.texts
    for name, values in vars(found.rollout.stats).items():
        torch.testing.assert_close(values, getattr(direct.rollout.stats, name))
    for name, output in found.outputs.items():
        assert torch.equal(output.scores, direct.outputs[name].scores)
        assert output.answers == direct.outputs[name].answers


def test_engine_logprobs_and_weights_are_assembled():
    draws = scripted(12, set(), 1)
    assert draws.problems is not None
    first, second = (draws.source.draw(draws.problems.batch([n, n + 1]), 0) for n in (0, 2))
    both = [
        replace(draw, rollout=replace(draw.rollout, engine_logprobs=values, token_weights=values))
        for draw, values in ((first, torch.zeros(4, 3)), (second, torch.ones(4, 3)))
    ]
    rollout, _ = assembled(both, [(1, 0), (0, 1)])
    assert rollout.engine_logprobs is not None
    assert rollout.token_weights is not None
    assert rollout.engine_logprobs[:, 0].tolist() == [1, 1, 0, 0]
    assert rollout.token_weights[:, 0].tolist() == [1, 1, 0, 0]


def gradient(policy: PolicyModel, rollout: Rollout, outputs: Any, objective: Any) -> torch.Tensor:
    """The gradient of one update with all that is left of a rollout."""
    rollout, outputs = without_dropped(rollout, outputs)
    advantages, _ = score_rollout(rollout, outputs, GDPO(), torch.tensor([1.0, 0.0]))
    policy.zero_grad()
    found: list[torch.Tensor] = []

    def step() -> float:
        parts = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
        found.append(torch.cat(parts).clone())
        return float(found[-1].norm())

    calls = OptimizerCalls(lambda loss, _: loss.backward(), policy.zero_grad, step)
    plan = UpdatePlan(updates_per_rollout=1)
    sampling = Sampling(max_new_tokens=24)
    Updater(policy, objective, sampling, TokenBudget(200), calls, plan).update(
        rollout, outputs, advantages, 0
    )
    [only] = found
    return only


def only(rollout: Rollout, groups: list[int]) -> Rollout:
    """Some groups of a rollout, picked by hand."""
    size, prompts = rollout.group_size, rollout.prompts
    index = torch.tensor([size * group + number for group in groups for number in range(size)])
    few = replace(
        prompts,
        token_ids=[prompts.token_ids[group] for group in groups],
        texts=[prompts.texts[group] for group in groups],
        columns={name: [column[g] for g in groups] for name, column in prompts.columns.items()},
        index=prompts.index[groups],
    )
    return Rollout(
        few,
        rollout.completion_ids[index],
        rollout.mask[index],
        rollout.stats.map(lambda values: values[index]),
        [rollout.texts[int(row)] for row in index],
        rollout.ended[index],
        size,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "aggregation", ["token_mean", pytest.param("sequence_mean", marks=pytest.mark.full)]
)
def test_to_skip_is_to_remove_the_groups(policy, aggregation):
    """With an entropy bonus, which acts on groups without advantage too."""
    draws = sampled(policy, 32, DynamicSampling())
    assert draws.problems is not None
    objective = Clipped(aggregation=aggregation, entropy_bonus=0.1)
    found = draws.draw(draws.problems.batch(list(range(8))), 0)
    whole = draws.source.draw(draws.problems.batch(list(range(8))), 0)
    spread = whole.outputs["vote"].scores.view(-1, 4)
    kept = (spread.amax(-1) > spread.amin(-1)).nonzero().flatten().tolist()
    assert 0 < len(kept) < 8
    assert found.figures["dynamic/signal"] == len(kept) / 8
    few = only(whole.rollout, kept)
    skipped = gradient(policy, found.rollout, found.outputs, objective)
    removed = gradient(policy, few, draws.source.rewards(few), objective)
    torch.testing.assert_close(skipped, removed, rtol=1e-9, atol=1e-12)
    with_all = gradient(policy, whole.rollout, whole.outputs, objective)
    assert float((with_all - removed).norm()) > 0.01 * float(removed.norm())


VOTE = '--model.rewards={"vote": {"head": "ClusterVote", "weight": 1.0}}'
NO_VALIDATION = "--trainer.limit_val_batches=0"


def dynamic(**settings: Any) -> str:
    return f"--model.dynamic_sampling={json.dumps(settings)}"


class Position(RewardHead):
    """A head that tells all completions of a group apart."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        return RewardOutput(torch.arange(len(rollout.texts)).float() % rollout.group_size)


class Nothing(RewardHead):
    """A head that gives all completions one score."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        return RewardOutput(torch.ones(len(rollout.texts)))


def rewards(head: str) -> str:
    reward = {"head": {"class_path": f"test_dynamic_sampling.{head}"}, "weight": 1.0}
    return f"--model.rewards={json.dumps({'mine': reward})}"


@pytest.mark.slow
def test_where_every_group_has_signal_it_is_the_run_without(tmp_path):
    """Bit for bit; and the run without logs none of its figures."""
    own = [*ONE, rewards("Position"), NO_VALIDATION]
    runs = {
        name: fit(tmp_path / name, *own, *more)
        for name, more in {"without": [], "with": [dynamic(max_draws=3)]}.items()
    }
    assert_same(parameters(runs["without"]), parameters(runs["with"]))
    plain, more = metrics(tmp_path / "without"), metrics(tmp_path / "with")
    assert [{k: row[k] for k in plain[0]} for row in more] == plain
    assert {name for name in more[0] if name not in plain[0]} == {
        "reward/mine/first_mean",
        *(f"dynamic/{x}" for x in ("signal", "extra_groups", "empty_places", "discarded_tokens")),
        "dynamic/first_entropy",
    }
    assert [row["dynamic/first_entropy"] for row in more] == [r["policy/entropy"] for r in plain]


@pytest.mark.slow
def test_a_run_without_any_signal_goes_on_and_moves_nothing(tmp_path):
    run = fit(tmp_path, *ONE, rewards("Nothing"), dynamic(max_draws=2), NO_VALIDATION)
    start = PolicyModel(Policy(NAME)).state_dict()
    assert run.trainer.global_step == 4
    assert_same(parameters(run), start)
    figures = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    assert figures["dynamic/empty_places"] == 8
    assert figures["dynamic/extra_groups"] == 8  # 16 problems: all others
    assert figures["reward/mine/first_mean"] == 1
    assert math.isnan(figures["reward/mine/mean"])
    assert figures["policy/grad_norm"] == 0


@pytest.mark.full  # test_commands_in_docs.py parses it; the runs around it train
def test_the_overlay_is_what_it_says_and_trains(tmp_path):
    overlay = f"--config={ROOT / 'configs' / 'objectives' / 'dynamic_sampling.yaml'}"
    run = fit(tmp_path, overlay, NO_VALIDATION)
    assert run.model.dynamic_sampling == DynamicSampling(["vote"], 3)
    assert run.trainer.global_step == 8
    figures = run.trainer.callback_metrics
    assert 0 < float(figures["dynamic/signal"]) < 1
    assert float(figures["dynamic/extra_groups"]) > 0
    assert float(figures["policy/grad_norm"]) > 0


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    """Also the coin and the usual spread, which are learned from first draws."""
    heads = {
        "vote": {"head": "ClusterVote", "weight": 1.0, "spread_floor": 0.5},
        "coin": {"head": "Random", "weight": 0.5},
    }
    own = [f"--model.rewards={json.dumps(heads)}", dynamic(heads=["vote"], max_draws=2)]
    own += [NO_VALIDATION, "--data.source.init_args.size=32", saving(every=1, keep=None)]
    whole = fit(tmp_path / "whole", *own)
    [path] = (tmp_path / "whole").rglob("rollout=000001.ckpt")
    resumed = fit(tmp_path / "resumed", *own, f"--ckpt_path={path}")
    assert_same(parameters(whole), parameters(resumed))
    state = resumed.model.rewards.state_dict()
    assert_same(dict(whole.model.rewards.state_dict()), dict(state))
    last = {place: row for place, row in rows(tmp_path / "whole").items() if place[0] > 0}
    assert differences(rows(tmp_path / "resumed"), last) == []
    assert float(last[1, False]["dynamic/extra_groups"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.full)])
def test_on_several_processes_it_is_the_run_on_one(tmp_path, processes):
    """Completions, figures and, to rounding, parameters; places run out of problems at the end."""
    writer = {"class_path": "CompletionWriter", "init_args": {"every": 1, "groups": 8}}
    heads = {
        "vote": {"head": "ClusterVote", "weight": 1.0, "spread_floor": 0.5},
        "coin": {"head": "Random", "weight": 0.5},
    }
    run = [
        *launches.BASE, NO_VALIDATION, dynamic(heads=["vote"], max_draws=5),
        "--data.source.init_args.size=16", "--model.sampling.temperature=0.5",
        f"--model.rewards={json.dumps(heads)}", f"--trainer.callbacks+={json.dumps(writer)}",
    ]  # fmt: skip
    found = {}
    for count in (1, processes):
        folder = tmp_path / str(count)
        more = launches.on("ddp", count) if count > 1 else []
        launches.launch(folder, {"run": [*run, *more]}, forks=count if more else 0)
        written = [
            json.loads(line)
            for path in folder.rglob("completions*.jsonl")
            for line in path.read_text().splitlines()
        ]
        kept = ("rollout", "index", "completion_number", "completion", "length", "advantage")
        records = sorted([record[name] for name in kept] for record in written)
        found[count] = records, launches.metrics(folder, "run")
        launches.assert_same_weights(
            launches.weights(folder, "run"), launches.weights(tmp_path / "1", "run")
        )
    for records, logged in found.values():
        assert [each[:5] for each in records] == [each[:5] for each in found[1][0]]
        advantages = [each[5] for each in records]
        assert advantages == pytest.approx([each[5] for each in found[1][0]], abs=1e-6)
        for row, expected in zip(logged, found[1][1], strict=True):
            assert row == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True)
    assert len(found[1][0]) == 2 * 8 * 4
    extra = [row["dynamic/extra_groups"] for row in found[1][1]]
    assert len(extra) == 2
    assert min(extra) > 0
    assert min(row["dynamic/empty_places"] for row in found[1][1]) > 0
    assert max(row["dynamic/empty_places"] for row in found[1][1]) < 8


# The mark: with fsdp2, whose sampler is the one with collectives, it is slow.
@pytest.mark.parametrize(
    "strategy",
    [pytest.param("fsdp2", marks=pytest.mark.full), pytest.param("tp", marks=pytest.mark.full)],
)
def test_with_sharded_weights_it_is_the_run_on_one(tmp_path, strategy):
    """Weights that stay sharded: each pass of the sampler is a collective."""
    run = [*launches.BASE, NO_VALIDATION, VOTE, dynamic(max_draws=3)]
    more = launches.on(strategy, 2)
    more += ["--trainer.strategy.init_args.keep_sharded=true"] if strategy == "fsdp2" else []
    launches.launch(tmp_path / "one", {"run": run})
    launches.launch(tmp_path / "two", {"run": [*run, *more]}, forks=2)
    launches.assert_same_weights(
        launches.weights(tmp_path / "two", "run"), launches.weights(tmp_path / "one", "run")
    )
    one, two = (launches.metrics(tmp_path / name, "run") for name in ("one", "two"))
    for row, expected in zip(two, one, strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_draws": 0}, r"dynamic_sampling\.max_draws=0 must be at least 1"),
        ({"heads": []}, r"dynamic_sampling\.heads=\[\] must name at least one"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DynamicSampling(**settings)


HEADS = {
    "vote": WeightedReward(ClusterVote(), weight=0.5),
    "certainty": WeightedReward(SelfCertainty(), weight=0.5),
    "gold": WeightedReward(GoldAnswer(), weight=0.0),
    "cut": WeightedReward(DropTruncated()),
}


@pytest.mark.parametrize(
    ("settings", "group_size", "message"),
    [
        ({"heads": ["votes"]}, 4, r"names 'votes'; known heads: \['certainty', 'cut', 'gold',"),
        ({}, 4, r"reward 'certainty' \(SelfCertainty\) tells completions of practically every"),
        ({"heads": ["vote", "certainty"]}, 4, "name the rewards that decide"),
        ({"heads": ["cut"]}, 4, r"\['cut'\] scores nothing"),
        ({"heads": ["vote"]}, 1, r"data\.group_size=1 no group has signal"),
        ({"heads": ["vote"], "max_draws": 2}, 4, r"max_draws=2 draws further problems, which only"),
    ],
)
def test_runs_in_which_it_could_do_nothing_are_refused(settings, group_size, message):
    with pytest.raises(ValueError, match=message):
        DynamicSampling(**settings).check(RewardSet(HEADS), group_size, None)


@pytest.mark.parametrize("heads", [["vote"], ["gold"], ["vote", "cut"]])
def test_heads_that_can_decide_are_taken(heads):
    """Also one of weight 0, and with no PromptData where nothing is drawn again."""
    DynamicSampling(heads).check(RewardSet(HEADS), 4, None)


def test_certainty_can_decide_behind_a_gate():
    """Where the vote is unanimous it does not apply, so such groups have no signal."""
    gated = replace(HEADS["certainty"], gate=Gate("vote", unanimous="zero"))
    rewards = RewardSet({"vote": HEADS["vote"], "certainty": gated})
    DynamicSampling().check(rewards, 4, None)
    found = rewards(handmade(["1", "1", "1", "1", "1", "2"], 3))
    assert groups_with_signal(found, ["vote", "certainty"], 3).tolist() == [False, True]


def test_a_rollout_of_all_problems_is_refused_in_setup(tmp_path, capsys):
    with pytest.raises(SystemExit):
        fit(tmp_path, VOTE, dynamic(max_draws=2), "--data.source.init_args.size=8")
    assert "the 8 training problems are one rollout" in capsys.readouterr().err
