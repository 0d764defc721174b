"""Replay: which groups come back, with which old log-probs, and the update that they join."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness.objectives import OBJECTIVES
from rlif_lightning.learning.entropy_minimisation import EntropyMinimisation
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.objective_base import Objective, ReferenceKL
from rlif_lightning.learning.objectives import ClipCov, Clipped, KLCov
from rlif_lightning.learning.old_logprobs import settle_old_logprobs
from rlif_lightning.learning.replay import OldGroup, Replay, ReplayBuffer, joined
from rlif_lightning.learning.token_budget import TokenBudget
from rlif_lightning.learning.update import UpdatePlan
from rlif_lightning.learning.update_metrics import UpdateMeter
from rlif_lightning.learning.updater import OptimizerCalls, Updater
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Completions, Prompts, Rollout, TokenStats
from rlif_lightning.sampling import Sampling

SAMPLING = Sampling(max_new_tokens=8)
GROUP = 2


def drawn_tokens(num_prompts: int, seed: int) -> Completions:
    """Groups of two with 1 to 5 tokens."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(4, 40, (3 + p,), generator=generator) for p in range(num_prompts)]
    lengths = torch.randint(1, 6, (num_prompts * GROUP, 1), generator=generator)
    mask = torch.arange(int(lengths.max())) < lengths
    ids = torch.randint(20, 40, mask.shape, generator=generator).where(mask, 0)
    return Completions(prompts, ids, mask, GROUP)


def logprobs_of(policy: PolicyModel, completions: Completions) -> list[Tensor]:
    """Each completion's log-probs by the model's own forward of that sequence alone."""
    found = []
    for row, keep in enumerate(completions.mask):
        prompt, answer = completions.prompt_ids[row // GROUP], completions.completion_ids[row][keep]
        logits = policy.model(input_ids=torch.cat([prompt, answer]).unsqueeze(0)).logits[0]
        logp = logits[len(prompt) - 1 : -1].log_softmax(-1)
        found.append(logp.gather(-1, answer.unsqueeze(-1)).squeeze(-1))
    return found


def in_rows(values: list[Tensor], mask: Tensor) -> Tensor:
    return torch.stack([torch.nn.functional.pad(v, (0, mask.shape[1] - len(v))) for v in values])


def rollout_of(completions: Completions, logprobs: Tensor) -> Rollout:
    count, rows = len(completions.prompt_ids), len(completions.mask)
    prompts = Prompts(completions.prompt_ids, [""] * count, {}, torch.arange(count))
    stats, ended = TokenStats(*(logprobs.detach(),) * 3), torch.ones(rows, dtype=torch.bool)
    ids, mask = completions.completion_ids, completions.mask
    return Rollout(prompts, ids, mask, stats, [""] * rows, ended, GROUP)


def old_groups(completions: Completions, old: Tensor, advantages: Tensor) -> list[OldGroup]:
    """As a buffer holds them, from rollout 0."""
    found = []
    for group, prompt in enumerate(completions.prompt_ids):
        rows = slice(group * GROUP, group * GROUP + GROUP)
        mask, numbers = completions.mask[rows], torch.arange(group * GROUP, group * GROUP + GROUP)
        ids, ones = completions.completion_ids[rows], torch.ones_like(old[rows])
        floor = torch.zeros(GROUP, dtype=old.dtype)
        given = ids, mask, old[rows].detach(), advantages[rows], numbers, floor, ones, -ones
        found.append(OldGroup(0, group, prompt, *given))
    return found


@dataclass
class Scene:
    """A policy in float64, a rollout of it, and one of an earlier policy in a buffer."""

    policy: PolicyModel
    rollout: Rollout
    advantages: Tensor
    buffer: ReplayBuffer
    old: Completions
    old_logprobs: Tensor
    old_advantages: Tensor


@pytest.fixture
def scene(tiny_models) -> Scene:
    policy = PolicyModel(Policy(str(tiny_models["llama"]))).double()
    fresh, old = drawn_tokens(3, 1), drawn_tokens(2, 2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        now = in_rows(logprobs_of(policy, fresh), fresh.mask)
        before = in_rows(logprobs_of(policy, old), old.mask)
    before = before + 0.3 * torch.randn(before.shape, generator=generator, dtype=before.dtype)
    advantages = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.5, -2.0]).double()
    old_advantages = torch.tensor([0.7, -0.7, 1.5, -0.3]).double()
    advantages, old_advantages = (
        values.unsqueeze(1).expand(completions.mask.shape)
        for values, completions in ((advantages, fresh), (old_advantages, old))
    )
    buffer = ReplayBuffer(Replay(groups=4, max_age=3))
    buffer.groups = old_groups(old, before, old_advantages)
    return Scene(policy, rollout_of(fresh, now), advantages, buffer, old, before, old_advantages)


Step = Callable[[], float]


def updater(
    scene: Scene, objective: Objective, step: Step | None = None, budget: int = 10_000, **plan: Any
) -> Updater:
    calls = OptimizerCalls(
        lambda loss, is_last: loss.backward(), scene.policy.zero_grad, step or (lambda: 1.0)
    )
    plan = {"updates_per_rollout": 1} | plan
    settings = scene.policy, objective, SAMPLING, TokenBudget(budget), calls, UpdatePlan(**plan)
    return Updater(*settings)


def gradient(policy: PolicyModel) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


def by_hand(scene: Scene, low: float = 0.2, high: float = 0.2) -> Tensor:
    """The loss of one mini-batch, one token at a time, with the model's own log-probs."""
    tokens: list[Tensor] = []
    for row, now in enumerate(logprobs_of(scene.policy, scene.rollout.completions)):
        for logp in now:  # the ratio of the rollout's own tokens is 1
            tokens.append(-(logp - logp.detach()).exp() * scene.advantages[row, 0])
    for row, now in enumerate(logprobs_of(scene.policy, scene.old)):
        for t, logp in enumerate(now):
            ratio, a = (logp - scene.old_logprobs[row, t]).exp(), scene.old_advantages[row, 0]
            tokens.append(-torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a))
    return torch.stack(tokens).sum() / len(tokens)


@pytest.mark.parametrize("budget", [10_000, 1])
def test_the_gradient_is_that_of_new_and_old_tokens_worked_one_by_one(scene, budget):
    """The new ones with ratio 1, the old ones against their own old log-probs and clipped."""
    figures = updater(scene, Clipped(), budget=budget).update(
        scene.rollout, {}, scene.advantages, 2, replay=scene.buffer
    )
    found = gradient(scene.policy)
    scene.policy.zero_grad()
    by_hand(scene).backward()
    torch.testing.assert_close(found, gradient(scene.policy), rtol=1e-5, atol=1e-7)
    assert float(found.abs().max()) > 1e-3
    assert (figures["replay/groups"], figures["replay/age"]) == (2, 2)
    assert float(figures["policy/log_ratio"]) == 0  # of the rollout's own tokens alone
    now = in_rows(logprobs_of(scene.policy, scene.old), scene.old.mask).detach()
    ratio = (now - scene.old_logprobs).exp()[scene.old.mask]
    assert float(figures["replay/ratio"]) == pytest.approx(float(ratio.mean()), rel=1e-6)
    kl = float((ratio - 1 - ratio.log()).mean())
    assert float(figures["replay/kl"]) == pytest.approx(kl, rel=1e-6)
    a = scene.old_advantages[scene.old.mask]
    held = ((a > 0) & (ratio > 1.2)) | ((a < 0) & (ratio < 0.8))
    assert float(figures["replay/clip_fraction"]) == pytest.approx(float(held.double().mean()))
    assert 0 < int(held.sum()) < len(held)


@dataclass(frozen=True)
class Seen(Clipped):
    """Remembers every micro-batch that it is asked about."""

    batches: Any = None

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        self.batches.append(replace(batch, logprobs=batch.logprobs.detach().clone()))
        return super().policy_loss(batch, marks)


@pytest.mark.parametrize("source", ["sampler", "rescored"])
def test_old_tokens_are_off_policy_from_the_first_mini_batch_and_new_ones_as_ever(scene, source):
    """Two mini-batches, twice; every step moves the policy."""
    seen: list[LossInputs] = []
    moves = list(scene.policy.parameters())

    def step() -> float:
        with torch.no_grad():
            for parameter in moves:
                parameter -= 1e-2 * (0 if parameter.grad is None else parameter.grad)
        scene.policy.zero_grad()
        return 1.0

    plan = {"updates_per_rollout": 2, "epochs_per_rollout": 2, "old_logprobs": source}
    updater(scene, Seen(batches=seen), step, **plan).update(
        scene.rollout, {}, scene.advantages, 2, replay=scene.buffer
    )
    assert len(seen) == 4
    rollout = {int(n): row for row, n in enumerate(scene.rollout.completion_numbers(2))}
    first: dict[int, Tensor] = {}
    for number, batch in enumerate(seen):
        assert batch.is_replayed is not None
        assert len(set(batch.is_replayed.tolist())) == 2  # each mini-batch has both
        for row, (name, old) in enumerate(
            zip(batch.completion_numbers.tolist(), batch.is_replayed.tolist(), strict=True)
        ):
            keep = batch.mask[row]
            found, now = batch.old_logprobs[row][keep], batch.logprobs[row][keep]
            length = len(found)
            if old:
                assert torch.equal(found, scene.old_logprobs[name, :length])
                assert not torch.equal(found, now)
            elif number == 0:
                assert torch.equal(found, now)
                first[name] = found
            else:
                sampled = scene.rollout.stats.logprobs[rollout[name], :length]
                torch.testing.assert_close(found, first.get(name, sampled), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "objective",
    [
        KLCov(fraction=0.3, weight=1.0, rank_by="current"),
        ClipCov(fraction=0.3, band=(-1.0, 5.0)),
        Clipped(reference_kl=ReferenceKL(0.1, "k3_ratio"), entropy_bonus=0.1),
    ],
    ids=lambda each: type(each).__name__,
)
@pytest.mark.parametrize("source", ["sampler", "rescored"])
def test_marks_reference_and_rescoring_do_not_depend_on_the_budget(scene, objective, source):
    found = []
    for budget in (10_000, 1):
        scene.policy.zero_grad()
        scene.buffer.groups = old_groups(scene.old, scene.old_logprobs, scene.old_advantages)
        work = updater(scene, objective, budget=budget, updates_per_rollout=2, old_logprobs=source)
        work = replace(work, reference=scene.policy)
        figures = work.update(scene.rollout, {}, scene.advantages, 2, replay=scene.buffer)
        left_out = ("update/", "policy/noise_floor", "policy/sampler_gap")
        numbers = [float(v) for k, v in figures.items() if not k.startswith(left_out)]
        found.append((gradient(scene.policy), numbers))
    (together, figures), (alone, figures_alone) = found
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6 * float(alone.abs().max()))
    assert figures == pytest.approx(figures_alone, rel=1e-5, abs=1e-9)


def test_the_present_log_probs_are_measured_for_old_tokens_alone_on_the_first_mini_batch(scene):
    """Clip-Cov leaves out tokens that the clip holds; none of the new ones is."""
    asked: list[LossInputs] = []

    @dataclass(frozen=True)
    class Asked(ClipCov):
        def select(self, update: LossInputs) -> Tensor:
            asked.append(update)
            return super().select(update)

    updater(scene, Asked(fraction=0.3, band=(-1.0, 5.0))).update(
        scene.rollout, {}, scene.advantages, 2, replay=scene.buffer
    )
    (given_to,) = asked
    new, mask = len(scene.rollout.mask), scene.old.mask
    now = in_rows(logprobs_of(scene.policy, scene.old), mask).detach()
    order = given_to.completion_numbers[new:].argsort()
    found = given_to.logprobs[new:, : mask.shape[1]][order]
    torch.testing.assert_close(found[mask], now[mask], rtol=1e-9, atol=1e-9)
    assert torch.equal(given_to.logprobs[:new], given_to.old_logprobs[:new])


def test_without_old_groups_an_update_is_the_one_without_replay(scene):
    scene.buffer.clear()
    found = []
    for buffer in (scene.buffer, None):
        scene.policy.zero_grad()
        work = updater(scene, KLCov(), updates_per_rollout=2)
        figures = work.update(scene.rollout, {}, scene.advantages, 2, replay=buffer)
        common = {k: float(v) for k, v in figures.items() if not k.startswith("replay/")}
        found.append((gradient(scene.policy), common, [*figures]))
    (empty, figures, names), (off, figures_off, names_off) = found
    assert torch.equal(empty, off)
    assert figures == figures_off
    assert {*names} - {*names_off} == {
        f"replay/{name}" for name in ("groups", "age", "ratio", "kl", "clip_fraction")
    }
    assert len(scene.buffer.groups) == 2  # the second group of three has no advantage


def test_figures_of_old_tokens_by_hand():
    """Ratios 2 and 1/2: mean 5/4, KL (2 - 1 - ln 2 + 1/2 - 1 + ln 2) / 2 = 1/4, one held."""
    new = torch.tensor([[0.0, 0.0], [math.log(2), -math.log(2)]])
    mask, ones = torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 2)
    is_replayed = torch.tensor([False, True])
    batch = LossInputs(
        new, torch.zeros(2, 2), ones, mask, torch.arange(2), ones, is_replayed=is_replayed
    )
    meter = UpdateMeter(mask.device)
    meter.add(batch, torch.zeros_like(mask), mask, Clipped())
    found = {name: float(value) for name, value in meter.replayed_means().items()}
    assert found == pytest.approx(
        {"replay/ratio": 1.25, "replay/kl": 0.25, "replay/clip_fraction": 0.5}
    )
    assert float(meter.means()["policy/log_ratio"]) == 0


def test_old_tokens_keep_log_probs_and_noise_floor_when_the_others_are_settled():
    """The second completion is an old one; its forward must count in no figure of the sampler."""
    old, mask = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]), torch.ones(2, 2, dtype=torch.bool)
    forward, floor = old + torch.tensor([[0.25, 0.0], [5.0, 5.0]]), torch.tensor([[0.0], [0.75]])
    inputs = LossInputs(
        old, old, old, mask, torch.arange(2), sampled_logprobs=old, noise_floor=floor,
        is_replayed=torch.tensor([False, True]),
    )  # fmt: skip
    settled, figures = settle_old_logprobs(inputs, torch.arange(2), forward, lambda: forward)
    assert settled.old_logprobs.tolist() == [[-0.75, -2.0], [-3.0, -4.0]]
    assert float(figures["policy/sampler_gap"]) == 0.125
    assert settled.noise_floor.tolist() == [[0.25], [0.75]]
    # 0.75 nats are rounding for the old completion: KL-Cov's penalty on it is flat.
    moved = (settled.old_logprobs + 0.75).requires_grad_()
    batch = replace(settled, logprobs=moved, advantages=torch.zeros(2, 2))
    KLCov(weight=1.0).policy_loss(batch, mask).sum().backward()
    assert moved.grad.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    nothing = torch.full_like(forward, torch.nan)
    scored, figures = settle_old_logprobs(inputs, torch.arange(2), nothing, lambda: forward)
    assert float(figures["policy/sampler_gap"]) == 0.125
    assert torch.equal(scored.old_logprobs, old)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 9), st.integers(2, 4))
def test_old_groups_are_dealt_alike_on_any_number_of_ranks(updates, epochs, replayed, ranks):
    """Old group j is group P + j // ranks of rank j % ranks; the new ones are as without it."""
    plan, per_rank = UpdatePlan(updates, epochs), updates + 1
    number = per_rank * ranks
    plain = list(plan.minibatches(number, 5, 3, 0, 1))
    alone = list(plan.minibatches(number, 5, 3, 0, 1, replayed))
    dealt = [list(plan.minibatches(per_rank, 5, 3, rank, ranks, replayed)) for rank in range(ranks)]
    for step, groups in enumerate(alone):
        assert [group for group in groups if group < number] == plain[step]
        old = [group - number for group in groups if group >= number]
        assert replayed // updates <= len(old) <= -(-replayed // updates)
        there = [
            (group - per_rank) * ranks + rank
            for rank in range(ranks)
            for group in dealt[rank][step]
            if group >= per_rank
        ]
        assert sorted(there) == old
    used = [group for groups in alone for group in groups if group >= number]
    assert sorted(used) == sorted([number + j for j in range(replayed)] * epochs)


def kept_after(buffer: ReplayBuffer, rollouts: int, groups: int = 6) -> list[list[tuple[int, int]]]:
    """Which (rollout, place) each rollout replays, where every other group has an advantage."""
    completions = drawn_tokens(groups, 1)
    signal = (torch.arange(groups) % 2 == 0).repeat_interleave(GROUP)
    drawn = []
    for number in range(rollouts):
        drawn.append([(g.rollout_number, g.place) for g in buffer.draw(number, 0, GROUP)])
        values = torch.full(completions.mask.shape, -float(number + 1))
        advantages = signal.float().unsqueeze(1).expand_as(values)
        inputs = LossInputs(
            values, values, advantages, completions.mask, torch.arange(groups * GROUP),
            noise_floor=torch.tensor(0.5), sampled_entropy=values,
        )  # fmt: skip
        buffer.keep(completions, inputs, number, 0)
    return drawn


def test_what_is_kept_has_an_advantage_is_young_and_few():
    buffer = ReplayBuffer(Replay(groups=2, max_age=3))
    drawn = kept_after(buffer, 8)
    assert drawn[0] == []
    for number, groups in enumerate(drawn[1:], 1):
        assert len(groups) == len(set(groups)) == 2
        assert all(1 <= number - rollout <= 3 for rollout, _ in groups)
        assert {place for _, place in groups} <= {0, 2, 4}
    assert [group.rollout_number for group in buffer.groups] == [5, 5, 6, 6, 7, 7]
    ages = {n - rollout for n, groups in enumerate(drawn) for rollout, _ in groups}
    assert ages == {1, 2, 3}
    one = buffer.groups[0]
    assert one.noise_floor.tolist() == [0.5, 0.5]
    assert one.mask.shape[1] == int(one.mask.sum(-1).max())
    assert one.old_logprobs.unique().tolist() == [-6.0]
    storage = one.old_logprobs.untyped_storage().nbytes()
    assert storage == one.old_logprobs.numel() * one.old_logprobs.element_size()
    again = ReplayBuffer(Replay(groups=2, max_age=3))
    assert kept_after(again, 8) == drawn
    assert ReplayBuffer(Replay(groups=2)).draw(0, 0, GROUP) == []
    assert buffer.draw(8, 0, GROUP + 1) == []  # groups of another size
    assert buffer.draw(8 + 3, 0, GROUP) == []  # of age 4 and more


def test_rounding_of_a_batch_mean_is_no_advantage():
    completions = drawn_tokens(2, 1)
    old = torch.zeros(completions.mask.shape)
    advantages = torch.tensor([1e-8, -1e-8, 0.5, -0.5]).unsqueeze(1).expand_as(old)
    floor = torch.tensor(0.0)
    inputs = LossInputs(
        old, old, advantages, completions.mask, torch.arange(4), noise_floor=floor,
        sampled_entropy=old,
    )  # fmt: skip
    buffer = ReplayBuffer(Replay(groups=2))
    buffer.keep(completions, inputs, 0, 0)
    assert [group.place for group in buffer.groups] == [1]


def test_joined_by_hand():
    """A rollout of two tokens and an old group of three: padded, numbered, weighted, told apart."""
    completions = Completions(
        [torch.tensor([7])], torch.tensor([[1, 2]] * 2), torch.ones(2, 2) > 0, 2
    )
    zeros = torch.zeros(2, 2)
    inputs = LossInputs(
        zeros, zeros, zeros + 3, completions.mask, torch.tensor([10, 11]), sampled_logprobs=zeros,
        sampled_entropy=zeros + 6,
    )  # fmt: skip
    mask = torch.tensor([[True, True, True], [True, False, False]])
    ones = torch.ones(2, 3)
    old = OldGroup(
        4, 0, torch.tensor([8, 9]), mask.long() * 5, mask, -ones, 2 * ones, torch.tensor([20, 21]),
        torch.tensor([0.5, 0.5]), 0.25 * ones, 7 * ones,
    )  # fmt: skip
    together, found = joined(completions, inputs, [old])
    assert [ids.tolist() for ids in together.prompt_ids] == [[7], [8, 9]]
    assert together.completion_ids.tolist() == [[1, 2, 0], [1, 2, 0], [5, 5, 5], [5, 0, 0]]
    assert found.mask.sum(-1).tolist() == [2, 2, 3, 1]
    assert found.old_logprobs.tolist() == [[0, 0, 0], [0, 0, 0], [-1, -1, -1], [-1, -1, -1]]
    assert found.completion_numbers.tolist() == [10, 11, 20, 21]
    assert found.advantages[:, 0].tolist() == [3, 3, 2, 2]
    assert found.token_weights[:, 0].tolist() == [1, 1, 0.25, 0.25]
    assert found.sampled_entropy.tolist() == [[6, 6, 0], [6, 6, 0], [7, 7, 7], [7, 7, 7]]
    assert found.noise_floor.tolist() == [[0], [0], [0.5], [0.5]]
    assert found.is_replayed.tolist() == [False, False, True, True]
    _, none = joined(completions, inputs, [])  # another data rank has the old ones
    assert none.mask.shape == (2, 2)
    assert none.is_replayed.tolist() == [False, False]


@dataclass(frozen=True)
class Blind(Objective):
    """REINFORCE: no old log-probs."""

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        return -batch.logprobs * batch.advantages


@dataclass(frozen=True)
class Weighted(Clipped):
    """Reads what every update has and the probe of ``check`` must have too."""

    def policy_loss(self, batch: LossInputs, marks: Tensor) -> Tensor:
        assert batch.entropy is not None
        assert batch.ref_logprobs is not None
        return self.clipped(batch) * batch.entropy.detach() * batch.ref_logprobs.exp()


def test_an_objective_that_reads_entropy_and_reference_is_accepted():
    Replay(4).check(Weighted(reference_kl=ReferenceKL(weight=0.1)), 4)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda each: type(each).__name__)
def test_every_objective_of_the_library_reads_old_log_probs(objective):
    if objective.teacher is not None or objective.column is not None:
        pytest.skip("a teacher's feedback and given texts are not replayed: both are refused")
    if isinstance(objective, EntropyMinimisation):  # it has no ratio, and knows no old policy
        with pytest.raises(ValueError, match="EntropyMinimisation does not depend on the old"):
            Replay(4).check(objective, 4)
        return
    Replay(4).check(objective, 4)


def test_what_cannot_be_right_is_refused():
    with pytest.raises(ValueError, match="objective Blind does not depend on the old log-probs"):
        Replay(4).check(Blind(), 8)
    with pytest.raises(ValueError, match=r"replay\.groups=9: 2 rollouts .* set it to 8 or less"):
        Replay(9, 2).check(Clipped(), 4)
    Replay(9, 2).check(Clipped(), None)
    for name, given_numbers in (("groups", (0, 1)), ("max_age", (1, 0))):
        with pytest.raises(ValueError, match=f"replay.{name}=0 must be at least 1"):
            Replay(*given_numbers)
    group = old_groups(drawn_tokens(1, 1), *(torch.zeros(drawn_tokens(1, 1).mask.shape),) * 2)[0]
    with pytest.raises(ValueError, match="advantages of a replayed group has another shape"):
        replace(group, advantages=torch.zeros(2, 99))
    buffer = ReplayBuffer(Replay(1))
    with pytest.raises(ValueError, match="replay buffer is none of this library's"):
        buffer.load_state_dict([{**vars(group), "other": 1}])
