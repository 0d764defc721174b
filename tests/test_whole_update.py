"""What an update counts as a whole: normalisers, dropped completions, lottery, LoRA's reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from harness.rollouts import handmade
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.losses import aggregation_weights
from rlif_lightning.learning.objectives import Clipped
from rlif_lightning.learning.old_logprobs import loss_inputs, reference_logprobs
from rlif_lightning.learning.rollout_advantages import without_dropped
from rlif_lightning.learning.token_budget import TokenBudget
from rlif_lightning.learning.update import MiniBatch
from rlif_lightning.learning.update_metrics import UpdateMeter
from rlif_lightning.learning.updater import OptimizerCalls, Updater
from rlif_lightning.model.loading import LoRA, Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.parallel.passes import measure_tokens
from rlif_lightning.records import Completions, RewardOutput
from rlif_lightning.sampling import Sampling

LENGTHS = torch.tensor([4, 2, 3, 1])


def four_completions() -> Completions:
    """Two prompts with two completions each, 4 + 2 and 3 + 1 tokens."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(4, 40, (length,), generator=generator) for length in (3, 5)]
    mask = torch.arange(4) < LENGTHS.unsqueeze(1)
    ids = torch.randint(20, 40, (4, 4), generator=generator).where(mask, 0)
    return Completions(prompts, ids, mask, 2)


def loss_of(policy: PolicyModel, aggregation: str, advantages: list[float]) -> float:
    """The loss of one on-policy update: every ratio is 1, so a token's loss is -A."""
    completions, zeros = four_completions(), torch.zeros(4, 4)
    a, rows = torch.tensor(advantages).unsqueeze(1).expand(4, 4), torch.arange(4)
    update = LossInputs(zeros, zeros, a, completions.mask, rows)
    shares: list[Tensor] = []

    def backward(share: Tensor, is_last: bool) -> None:
        shares.append(share.detach())

    calls = OptimizerCalls(backward, zero_grad=lambda: None, step=lambda: 0.0)
    objective, sampling = Clipped(aggregation=aggregation), Sampling(max_new_tokens=10)
    updater = Updater(policy, objective, sampling, TokenBudget(100), calls)
    batch = MiniBatch(update, completions, rows, is_on_policy=True)
    updater.accumulate_gradient(batch, UpdateMeter(rows.device))
    return float(sum(shares))


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", -(3 * 2 - 1) / 10),  # 10 tokens, those of the group without advantage too
        ("sequence_mean", -(2 - 1) / 4),  # 4 completions
        ("constant", -(3 * 2 - 1) / (4 * 10)),  # 4 completions of at most 10 tokens
    ],
)
def test_completions_without_advantage_stay_in_the_normaliser(tiny_models, aggregation, expected):
    """Of the first group (4 and 2 tokens) all advantages are 0; the second has 3 and 1 tokens."""
    policy = PolicyModel(Policy(str(tiny_models["llama"])))
    assert loss_of(policy, aggregation, [0.0, 0.0, 2.0, -1.0]) == pytest.approx(expected)


@pytest.mark.parametrize(("is_on_policy", "expected"), [(True, 1.0), (False, 2.0)])
def test_only_the_first_mini_batch_has_a_ratio_of_one(tiny_models, is_on_policy, expected):
    """Old log-probs that are lower by log 2 make every ratio 2, in later mini-batches alone."""
    policy = PolicyModel(Policy(str(tiny_models["llama"])))
    completions, sampling = four_completions(), Sampling(max_new_tokens=10)
    old = measure_tokens(policy, completions, sampling, 100).logprobs - math.log(2)
    rows, shares = torch.arange(4), []
    update = LossInputs(old, old, torch.full((4, 4), -1.0), completions.mask, rows)
    calls = OptimizerCalls(lambda share, _: shares.append(share.detach()), lambda: None, float)
    updater = Updater(policy, Clipped(), sampling, TokenBudget(100), calls)
    batch = MiniBatch(update, completions, rows, is_on_policy)
    updater.accumulate_gradient(batch, UpdateMeter(rows.device))
    assert float(sum(shares)) == pytest.approx(expected, rel=1e-5)


def test_constant_divides_by_the_limit_and_not_by_the_longest_completion():
    """Two completions of 3 and 1 tokens, padded to 3, limit 8: every token weighs 1 / 16."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    weights = aggregation_weights(mask, "constant", max_length=8)
    assert weights.tolist() == [[1 / 16] * 3, [1 / 16, 0, 0]]
    wider = torch.nn.functional.pad(mask, (0, 4))
    assert torch.equal(aggregation_weights(wider, "constant", 8)[:, :3], weights)


def test_each_of_two_heads_can_drop_a_completion():
    """The first head drops 0 and 3, the second 1 and 3, the third has no opinion: 2 is left."""
    rollout = handmade(["1", "2", "3", "4"], 2)
    keeps = ([False, True, True, False], [True, False, True, False], None)
    outputs = {
        str(number): RewardOutput(torch.ones(4), None if keep is None else torch.tensor(keep))
        for number, keep in enumerate(keeps)
    }
    for order in (["0", "1", "2"], ["2", "1", "0"]):
        kept, scores = without_dropped(rollout, {name: outputs[name] for name in order})
        assert kept.mask.any(-1).tolist() == [False, False, True, False]
        for output in scores.values():
            assert output.scores.isnan().tolist() == [True, True, False, True]


def test_the_lottery_of_each_rollout_is_another():
    """Completion numbers carry the rollout's number, so the same tokens draw other lots."""
    rollout = handmade(["x"] * 4, 2)
    zeros = torch.zeros(rollout.mask.shape)
    numbers = [
        loss_inputs(rollout, zeros, zeros, None, number).completion_numbers.tolist()
        for number in (0, 1, 7)
    ]
    assert numbers == [[number * 2**32 + row for row in range(4)] for number in (0, 1, 7)]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_reference_of_a_lora_policy_is_its_base_model(tiny_models):
    pytest.importorskip("peft")
    folder, sampling = str(tiny_models["llama"]), Sampling(max_new_tokens=10)
    policy = PolicyModel(Policy(folder, lora=LoRA(rank=2, alpha=4)))
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    completions = four_completions()
    scoring = (completions, sampling, 100)
    base = measure_tokens(PolicyModel(Policy(folder)), *scoring).logprobs
    adapted = measure_tokens(policy, *scoring).logprobs
    reference = reference_logprobs(policy, None, completions, sampling, 100)
    torch.testing.assert_close(reference, base, rtol=1e-6, atol=1e-6)
    assert float((reference - adapted).abs().max()) > 0.1
    other = PolicyModel(Policy(folder))
    torch.testing.assert_close(
        reference_logprobs(other, policy, completions, sampling, 100), adapted
    )


def test_a_failed_attempt_leaves_no_figure():
    """Memory ran out in the second mini-batch: the first one's tokens stay, the attempt's go."""
    mask, zeros = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3)
    meter = UpdateMeter(mask.device)

    def add(log_ratio: float) -> None:
        batch = LossInputs(zeros, zeros - log_ratio, zeros, mask, torch.arange(1), zeros)
        meter.add(batch, torch.zeros_like(mask), mask, Clipped())

    add(1.0)
    meter.keep()
    add(100.0)
    meter.undo()
    add(2.0)
    meter.keep()
    assert float(meter.means()["policy/log_ratio"]) == pytest.approx(1.5)
    assert float(meter.sums[0]) == 6
