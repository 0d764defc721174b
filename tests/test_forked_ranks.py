"""Figures over two data ranks, by hand, in two forked processes: each rank's own is another one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from harness.forked import on_two_ranks
from harness.rollouts import Given
from rlif_lightning.learning.advantages import GDPO, reward_shares
from rlif_lightning.learning.feedback import FeedbackWriter, feedback_texts
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.losses import aggregation_weights, token_covariance
from rlif_lightning.learning.objectives import ClipCov, KLCov
from rlif_lightning.learning.rollout_advantages import reward_metrics, score_rollout
from rlif_lightning.learning.stare import STARE
from rlif_lightning.learning.teacher import Teacher
from rlif_lightning.learning.update_metrics import UpdateMeter
from rlif_lightning.processes.collectives import first_process_result
from rlif_lightning.processes.ranks import share_completions
from rlif_lightning.records import Prompts, RewardOutput, Rollout, TokenStats
from rlif_lightning.rewards import RewardSet, WeightedReward
from rlif_lightning.rewards.voting import vote_metrics

NAN = math.nan


def rollout_of(lengths: list[int], entropy: float) -> Rollout:
    """One group; every token has this entropy."""
    size = len(lengths)
    mask = torch.arange(4) < torch.tensor(lengths).unsqueeze(1)
    values = torch.full((size, 4), entropy).where(mask, 0.0)
    prompts = Prompts([torch.tensor([1])], [""], {}, torch.arange(1))
    stats, ended = TokenStats(-values, values, values), torch.ones(size, dtype=torch.bool)
    return Rollout(prompts, mask.long(), mask, stats, ["x"] * size, ended, size)


def test_shares_of_rewards_are_over_both(tmp_path):
    """Sums of |part| are 2 and 6 on the first rank, 1 and 1 on the second: 3 / 10 and 7 / 10."""
    parts = [torch.tensor([[[-1.0, 1.0]], [[3.0, -3.0]]]), torch.tensor([[[0.5, -0.5]]] * 2)]
    for shares in on_two_ranks(lambda rank: reward_shares(parts[rank]).tolist(), tmp_path):
        assert shares == pytest.approx([0.3, 0.7])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # 0, 2, 1, 5: mean 2, squares 4 + 0 + 1 + 9 = 14; the one spread is sqrt 2.
        (([0.0, 2.0], [1.0, NAN, NAN, 5.0]), (2.0, math.sqrt(14 / 3), math.sqrt(2))),
        # 1, 3, 5, 9, 4, 4: mean 26 / 6; spreads sqrt 2, sqrt 8 and 0.
        (([1.0, 3.0], [5.0, 9.0, 4.0, 4.0]), (13 / 3, math.sqrt(106 / 15), math.sqrt(2))),
        (([1.0, 3.0], [NAN, NAN]), (2.0, math.sqrt(2), math.sqrt(2))),  # none on the second
        (([NAN, NAN], [NAN, NAN]), (NAN, NAN, NAN)),
    ],
)
def test_mean_and_spreads_of_a_reward_are_over_both(tmp_path, scores, expected):
    def work(rank: int) -> list[float]:
        figures = reward_metrics("x", torch.tensor(scores[rank]), 2)
        return [float(figures[f"reward/x/{name}"]) for name in ("mean", "std", "group_std")]

    for found in on_two_ranks(work, tmp_path):
        assert found == pytest.approx(expected, nan_ok=True)


def test_the_usual_spread_is_over_both(tmp_path):
    """Spreads sqrt 2 and sqrt 2 / 10: half of their mean is the floor of the second."""

    def work(rank: int) -> list[float]:
        head = WeightedReward(Given(torch.tensor([0.0, 0.2 if rank else 2.0])), spread_floor=0.5)
        output = RewardSet({"x": head})(rollout_of([1, 2], 1.0))["x"]
        return output.group_weight_factor.tolist()

    assert on_two_ranks(work, tmp_path) == [[1.0], pytest.approx([0.1 / 0.275])]


def test_a_rollouts_figures_are_over_both(tmp_path):
    """Entropy 1 on 2 tokens and 4 on 6; two heads whose z-scores are of one size on one rank."""

    def work(rank: int) -> list[float]:
        rollout = rollout_of([3, 3] if rank else [1, 1], 4.0 if rank else 1.0)
        outputs = {
            "a": RewardOutput(torch.tensor([0.0, 1.0])),
            "b": RewardOutput(torch.tensor([1.0, 1.0] if rank else [0.0, 1.0])),
        }
        loss_weights = aggregation_weights(rollout.mask, "token_mean", 4)
        given = rollout, outputs, GDPO(eps=0.0), torch.ones(2), loss_weights
        _, figures = score_rollout(*given)
        names = "policy/entropy", "reward/a/share", "reward/{}/gradient_norm"
        return [float(figures[name.format(head)]) for name in names for head in "ab"]

    # Parts are of size sqrt 1/2; a has 8 tokens with one, b has 2, and each weighs 1/8.
    expected = (
        [(2 * 1 + 6 * 4) / 8] * 2 + [2 / 3] * 2 + [math.sqrt(8 / 2) / 8, math.sqrt(2 / 2) / 8]
    )
    for found in on_two_ranks(work, tmp_path):
        assert found == pytest.approx(expected)


def test_answers_and_the_updates_figures_are_over_both(tmp_path):
    """Three answers; 3 tokens with |log-ratio| 1 and one with 5, of which 2 are picked."""

    def work(rank: int) -> list[float]:
        distinct = vote_metrics(["7", "5"] if rank else ["7", "3"], 2)["vote/distinct_answers"]
        count = 1 if rank else 3
        new, mask = torch.zeros(1, count), torch.ones(1, count, dtype=torch.bool)
        old = new - (5.0 if rank else 1.0)
        batch = LossInputs(new, old, new, mask, torch.tensor([0]), torch.ones(1, count))
        meter = UpdateMeter(mask.device)
        meter.add(batch, torch.arange(count).unsqueeze(0) == 0, mask, KLCov())
        means = meter.means()
        figures = [means[f"policy/{name}"] for name in ("log_ratio", "picked_fraction")]
        return [distinct, *map(float, figures)]

    for found in on_two_ranks(work, tmp_path):
        assert found == pytest.approx([3.0, 8 / 4, 2 / 4])


class Rank(FeedbackWriter):
    """Writes another text in each process, as one with a limit of time may."""

    def __init__(self, rank: int):
        self.rank = rank

    def feedback(self, rollout, outputs):
        return [f"from {self.rank}"] * len(rollout.texts)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda rank: {"of": rank}, [{"of": 0}, {"of": 0}]),
        (lambda rank: 1 // rank, ["integer division", "process 0 failed: ZeroDivisionError"]),
        (lambda rank: lambda: rank, ["pickle", "process 0 failed: "]),  # it cannot be sent
    ],
)
def test_the_first_process_s_result_or_failure_is_every_one_s(tmp_path, made, expected):
    """Of those that share completions; the second would fail, or not, by itself."""

    def work(rank: int) -> list:
        alone, worked = first_process_result(lambda: rank), []
        share_completions(True)
        try:
            found = first_process_result(lambda: worked.append(rank) or made(rank))
        except Exception as error:
            found = str(error)
        return [alone, worked, found]

    for rank, (alone, worked, found) in enumerate(on_two_ranks(work, tmp_path)):
        assert (alone, worked) == (rank, [0] if rank == 0 else [])
        said = expected[rank]
        assert said in found if isinstance(said, str) else found == said


def test_processes_that_share_completions_teach_from_one_feedback(tmp_path):
    def work(rank: int) -> list:
        given = Teacher("callback"), rollout_of([2, 1], 0.5), {}, None, Rank(rank)
        own = feedback_texts(*given)
        share_completions(True)
        return [own[0], feedback_texts(*given)]

    first, second = on_two_ranks(work, tmp_path)
    assert (first[0], second[0]) == ("from 0", "from 1")
    assert first[1] == second[1] == ["from 0", "from 0"]


def whole() -> LossInputs:
    """Six completions of up to five tokens."""
    generator = torch.Generator().manual_seed(0)
    old = -3 * torch.rand(6, 5, generator=generator)
    lengths = torch.tensor([5, 1, 3, 2, 5, 4]).unsqueeze(1)
    advantages = torch.randn(6, 1, generator=generator).expand(6, 5).contiguous()
    return LossInputs(old, old, advantages, torch.arange(5) < lengths, torch.arange(6))


def of_update(update: LossInputs) -> dict[str, torch.Tensor]:
    """What is chosen and weighed among all tokens of an update."""
    found = {
        kind: aggregation_weights(update.mask, kind, 9)
        for kind in ("token_mean", "sequence_mean", "constant")
    }
    found["covariance"] = token_covariance(update.logprobs, update.advantages, update.mask)
    found["kl_cov"] = KLCov(fraction=0.3).select(update)
    found["kl_cov top"] = KLCov(fraction=0.6, pick="top").select(update)
    found["clip_cov"] = ClipCov(fraction=0.2, band=(0.01, 9.0)).select(update)
    found["stare"] = STARE(fraction=0.3, negative_weight=0.9).select(update)
    advantage = GDPO(batch_norm="sample")
    rewards = update.advantages[:, 0].view(1, -1, 2)
    by_others = replace(advantage, leave_one_out=True)
    found["gdpo by others"] = by_others(rewards, torch.ones(1)).view(-1, 1)
    return found | {"gdpo": advantage(rewards, torch.ones(1)).view(-1, 1)}


@pytest.mark.parametrize("first", [2, 6])
def test_an_update_on_two_ranks_is_the_one_on_one(tmp_path, first):
    """Two rows and four, or all and none."""

    def work(rank: int) -> dict[str, torch.Tensor]:
        rows = slice(first, 6) if rank else slice(0, first)
        share = {name: value[rows] for name, value in vars(whole()).items() if value is not None}
        return of_update(LossInputs(**share))

    parts = on_two_ranks(work, tmp_path)
    for name, expected in of_update(whole()).items():
        joined = torch.cat([part[name] for part in parts])
        torch.testing.assert_close(joined, expected, rtol=1e-6, atol=1e-7, msg=name)
        assert joined.any(), name
