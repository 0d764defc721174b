"""Rollouts that a server draws ahead while the policy trains, with a stand-in for the server."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from torch import Tensor

from harness.command_line import build
from harness.decoding import completions
from harness.files import ROOT
from harness.launches import BASE as ON_TWO_OR_ONE
from harness.launches import assert_same_metrics, assert_same_weights, both_end, launch, on, weights
from harness.launches import metrics as logged
from harness.runs import ALWAYS, LONG, adding, column, fit, saving
from harness.stand_in_server import HANG_SECONDS, StandIn, stand_in
from harness.vllm_runs import GROUP, PLAIN, changed, gap_of, prompts_of
from rlif_lightning.data.loaders import TrainLoader
from rlif_lightning.learning.objectives import Clipped
from rlif_lightning.learning.old_logprobs import loss_inputs
from rlif_lightning.learning.token_budget import TokenBudget
from rlif_lightning.learning.update import UpdatePlan, select_groups
from rlif_lightning.learning.update_metrics import UpdateMeter
from rlif_lightning.learning.updater import OptimizerCalls, Updater
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts, Rollout
from rlif_lightning.rollout.draws_ahead import THREAD
from rlif_lightning.rollout.importance_weights import CORRECTIONS, Correction
from rlif_lightning.rollout.vllm_engine import VLLMServerEngine
from rlif_lightning.rollout.vllm_weights import fingerprint
from rlif_lightning.running.look_ahead import rollouts_left, upcoming_prompts
from rlif_lightning.running.setup_checks import _check_look_ahead
from rlif_lightning.sampling import PREDICTION_ROLLOUT, VALIDATION_STEP, Sampling, request_seed

SEED = 7
COMPLETIONS = "/v1/completions"


@pytest.fixture
def standing():
    with stand_in() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    """Of a pool: those are no daemons, and the interpreter would wait for them."""
    before = {*threading.enumerate()}
    yield
    end = time.monotonic() + HANG_SECONDS / 10
    while left := [it for it in threading.enumerate() if not it.daemon and it not in before]:
        assert time.monotonic() < end, left
        time.sleep(0.01)


def engine_of(server: StandIn, folder: Path, policy: PolicyModel, **settings) -> VLLMServerEngine:
    given = {"timeout": HANG_SECONDS, "max_gap": 1e-3, "staleness": 1, **settings}
    engine = VLLMServerEngine(server.url, str(folder), **given)
    engine.setup(policy, SEED)
    return engine


def drawing() -> list[threading.Thread]:
    """The threads that draw ahead."""
    return [each for each in threading.enumerate() if each.name.startswith(THREAD)]


def train(policy: PolicyModel, factor: float = 1.02) -> None:
    """Stands for an update: it changes every matrix."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.dim() == 2:
                parameter.mul_(factor)


def total(policy: PolicyModel) -> float:
    return float(fingerprint(policy).sum())


def weights_of(server: StandIn, rollout_number: int) -> set[float]:
    """Sums of the weights with which a rollout's completions of `prompts_of` were drawn."""
    seeds = {request_seed(SEED, rollout_number, index) for index in range(5, 9)}
    return {weights for seed, _, weights in server.drawn if seed in seeds}


def staleness_of(rollout: Rollout) -> int:
    assert rollout.staleness is not None
    (found,) = set(rollout.staleness.tolist())
    return found


def test_the_next_rollout_is_drawn_while_the_policy_trains(standing, tmp_path):
    """By events: the server answers only after the policy has been changed."""
    policy = changed()
    exact = engine_of(standing, tmp_path, policy, staleness=0)
    expected = completions(exact.generate(prompts_of(policy), GROUP, PLAIN, 1))
    engine = engine_of(standing, tmp_path, policy)

    def upcoming(rollout_number: int) -> Prompts:
        standing.hang.add(COMPLETIONS)
        standing.asked.clear()
        return prompts_of(policy)

    engine.look_ahead(upcoming, 0)
    first = engine.generate(prompts_of(policy), GROUP, PLAIN, 0)
    assert staleness_of(first) == 0
    assert gap_of(first) < 1e-3
    while len(standing.asked) < 4:  # what is asked for while this thread goes on
        time.sleep(0.01)
    old = total(policy)
    train(policy)
    standing.drawn.clear()
    standing.hang.clear()
    standing.released.set()
    engine.upcoming = None
    late = engine.generate(prompts_of(policy), GROUP, PLAIN, 1)
    assert staleness_of(late) == 1
    assert completions(late) == expected
    assert weights_of(standing, 1) == {old}
    assert gap_of(late) > 1e-3  # more than max_gap: no fault where weights are older
    assert late.engine_logprobs is not None
    ratio = (late.stats.logprobs - late.engine_logprobs).exp().clamp(max=2.0)
    assert late.token_weights is not None
    torch.testing.assert_close(late.token_weights, ratio)
    again = exact.generate(prompts_of(policy), GROUP, PLAIN, 1)  # statistics are the policy's now
    assert completions(again) != expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("staleness", "expected"),
    [
        pytest.param(1, [0, 1, 1, 1, 1], marks=pytest.mark.full),
        (2, [0, 1, 2, 1, 2]),
        pytest.param(3, [0, 1, 2, 3, 1], marks=pytest.mark.full),
    ],
)
def test_weights_are_those_that_the_figure_says(standing, tmp_path, staleness, expected):
    """Validation in between has the present weights, and changes nothing of what was drawn."""
    policy, sums, found = changed(), [], []
    engine = engine_of(standing, tmp_path, policy, staleness=staleness)
    engine.look_ahead(lambda number: prompts_of(policy) if number < 5 else None, 0)
    for number in range(5):
        sums.append(total(policy))
        found.append(staleness_of(engine.generate(prompts_of(policy), GROUP, PLAIN, number)))
        train(policy)
        if number in (0, 2):
            seen = engine.generate(prompts_of(policy), 1, PLAIN, VALIDATION_STEP)
            assert gap_of(seen) < 1e-3
            assert total(policy) in weights_of(standing, VALIDATION_STEP)
    assert found == expected
    for number, lag in enumerate(found):
        assert weights_of(standing, number) == {sums[number - lag]}
    assert engine.ahead.num_discarded == 0
    assert not engine.ahead.pending


@pytest.mark.slow
def test_what_is_not_asked_for_is_drawn_anew(standing, tmp_path):
    """Other prompts, group size or sampling than were foreseen."""
    policy = changed()
    engine = engine_of(standing, tmp_path, policy)
    engine.look_ahead(lambda number: prompts_of(policy), 0)
    others = prompts_of(policy, ("1+1=", "2+2=", "3+3=", "4+4="))
    hot = Sampling(temperature=1.5, max_new_tokens=24)
    for number, (prompts, size, sampling) in enumerate(
        [
            (prompts_of(policy), GROUP, PLAIN),
            (others, GROUP, PLAIN),
            (prompts_of(policy), 2, PLAIN),
            (prompts_of(policy), 2, hot),
            (prompts_of(policy), 2, hot),
        ]
    ):
        rollout = engine.generate(prompts, size, sampling, number)
        assert staleness_of(rollout) == (number == 4)
        assert len(rollout.texts) == 4 * size
        assert (gap_of(rollout) < 1e-3) == (number < 4)
        train(policy)
    assert engine.ahead.num_discarded == 3
    engine.discard_ahead()
    assert engine.ahead.num_discarded == 4


# The mark: test_vllm_server.py leaves a server that does not answer; this one waits for seconds.
@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refused", pytest.param("hangs", marks=pytest.mark.full)])
def test_a_fault_of_a_draw_ahead_is_raised_where_its_rollout_is_needed(standing, tmp_path, fault):
    policy = changed()
    engine = engine_of(standing, tmp_path, policy)

    def upcoming(rollout_number: int) -> Prompts:
        if fault == "hangs":
            standing.hang.add(COMPLETIONS)
            engine.sampler.client.timeout = 2.0  # rollout 0 has been drawn, however long it took
        else:
            standing.answers[COMPLETIONS] = [(400, {"error": {"message": "not this one"}})]
        return prompts_of(policy)

    engine.look_ahead(upcoming, 0)
    engine.generate(prompts_of(policy), GROUP, PLAIN, 0)
    said = {
        "refused": r"answered 400 to /v1/completions: not this one",
        "hangs": r"did not answer /v1/completions within .* \(timeout=2 \+ 0\.001 for each of",
    }
    with pytest.raises(RuntimeError, match=said[fault]):
        engine.generate(prompts_of(policy), GROUP, PLAIN, 1)


def test_what_is_being_drawn_is_dropped_at_once(standing, tmp_path, caplog):
    """As after a rollback, and at the end of a run: a server that never answers delays neither."""
    policy = changed()
    engine = engine_of(standing, tmp_path, policy, staleness=2)

    def upcoming(rollout_number: int) -> Prompts:
        standing.hang.add(COMPLETIONS)
        standing.asked.clear()
        return prompts_of(policy)

    engine.look_ahead(upcoming, 0)
    engine.generate(prompts_of(policy), GROUP, PLAIN, 0)
    while len(standing.asked) < 4:
        time.sleep(0.01)
    train(policy)
    started = time.monotonic()
    with caplog.at_level("INFO"):
        engine.discard_ahead()
    assert time.monotonic() - started < HANG_SECONDS / 4
    assert engine.ahead.num_discarded == 2
    assert "2 rollouts that were drawn ahead are dropped (2 so far)" in caplog.text
    standing.hang.clear()
    standing.released.set()
    engine.upcoming = None
    rollout = engine.generate(prompts_of(policy), GROUP, PLAIN, 1)
    assert staleness_of(rollout) == 0
    assert gap_of(rollout) < 1e-3


@pytest.fixture(scope="module")
def stale(tmp_path_factory) -> tuple[PolicyModel, Rollout]:
    """A policy, and a rollout that it drew two updates before."""
    with stand_in() as server:
        policy = changed()
        engine = engine_of(server, tmp_path_factory.mktemp("stale"), policy)
        engine.look_ahead(lambda number: prompts_of(policy), 0)
        engine.generate(prompts_of(policy), GROUP, PLAIN, 0)
        train(policy, 1.1)
        engine.look_ahead(lambda number: None, 0)
        rollout = engine.generate(prompts_of(policy), GROUP, PLAIN, 1)
    assert staleness_of(rollout) == 1
    return policy, rollout


def gradient(policy: PolicyModel, loss: Tensor) -> dict[str, Tensor]:
    policy.zero_grad()
    loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in policy.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("kind", CORRECTIONS)
# The mark: one micro-batch is a special case of several.
@pytest.mark.slow
@pytest.mark.parametrize("budget", [90, pytest.param(8192, marks=pytest.mark.full)])
def test_the_gradient_of_a_stale_rollout_is_weighted(stale, kind, budget):
    """sum over tokens of weight * advantage * gradient of the log-prob, over the tokens' number."""
    policy, rollout = stale
    assert rollout.engine_logprobs is not None
    weights, is_bounded = Correction(1.2, kind).weights(
        rollout.stats.logprobs, rollout.engine_logprobs, rollout.mask
    )
    assert 0 < is_bounded[rollout.mask].float().mean() < 1
    rollout = replace(rollout, token_weights=weights)
    numbers = torch.linspace(-1, 1, len(rollout.texts)).unsqueeze(1)  # [B, 1]
    advantages = numbers.expand(rollout.mask.shape)
    calls = OptimizerCalls(lambda share, _: share.backward(), policy.zero_grad, float)
    updater = Updater(policy, Clipped(), PLAIN, TokenBudget(budget), calls)
    inputs = loss_inputs(rollout, advantages, rollout.stats.logprobs, None, 1)
    groups = range(rollout.num_prompts)
    mini_batch = select_groups(inputs, rollout.completions, groups, is_on_policy=True)
    policy.zero_grad()
    updater.accumulate_gradient(mini_batch, UpdateMeter(torch.device("cpu")))
    found = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    terms = []
    for row, keep in enumerate(rollout.mask):
        ids = rollout.completion_ids[row][keep]
        prompt = rollout.prompts.token_ids[row // GROUP]
        logits = policy.causal_lm(torch.cat([prompt, ids]).unsqueeze(0)).logits[0]
        logprobs = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
        taken = logprobs.gather(1, ids.unsqueeze(1)).squeeze(1)
        mine = weight_of(kind, taken.detach(), rollout.engine_logprobs[row][keep], 1.2)
        terms.append((mine * numbers[row] * taken).sum())
    expected = gradient(policy, -torch.stack(terms).sum() / rollout.mask.sum())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6)


def weight_of(kind: str, mine: Tensor, theirs: Tensor, bound: float) -> Tensor:
    ratio = mine.exp() / theirs.exp()
    if kind.startswith("sequence"):
        ratio = ratio.prod().expand_as(ratio)
    if kind.endswith("mask"):
        return ratio * (ratio <= bound)
    if kind == "token_icepop":
        return ratio * ((ratio <= bound) & (ratio >= 1 / bound))
    return ratio.minimum(torch.tensor(bound))


# Whole runs.


class Recorder(Callback):
    """Records which problems each step trains on; sends a signal, or raises, after some rollout."""

    trained: ClassVar[list[list[int]]] = []

    def __init__(self, after: int = -1, number: int = 0):
        self.after, self.number = after, number

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.trained.append(outputs["rollout"].prompts.index.tolist())
        if int(pl_module.num_rollouts) == self.after:
            if not self.number:
                raise RuntimeError("on purpose")
            os.kill(os.getpid(), self.number)


@pytest.fixture(autouse=True)
def _nothing_is_recorded():
    Recorder.trained.clear()


def arguments_for(server: StandIn, folder: Path, **settings: Any) -> list[str]:
    given = {
        "server": server.url,
        "weights_folder": folder / "weights",
        "timeout": HANG_SECONDS,
        "staleness": 1,
        **settings,
    }
    return [
        "--model.engine=VLLMServerEngine",
        *(f"--model.engine.{name}={value}" for name, value in given.items()),
    ]


SHORT = [*LONG, "--trainer.limit_val_batches=0", "--model.sampling.max_new_tokens=12"]


def prompts_in_order(run: Any) -> list[list[int]]:
    """The problems of each rollout of two epochs, by a loader that nobody looks ahead in."""
    data = run.datamodule
    loader = TrainLoader(data.split("train"), data.prompts_per_rollout, data.seed, 1, 0)
    return [batch.index.tolist() for _ in range(2) for batch in loader]


def recorded(**settings: Any) -> str:
    return adding("test_asynchronous.Recorder", **settings)


def drawn_once(server: StandIn, seed: int, rollouts: int) -> Counter[int]:
    """How many prompts were drawn for each rollout; none of them twice."""
    rollout_of = {request_seed(seed, n, i): n for n in range(rollouts) for i in range(16)}
    seeds = [each for each, _, _ in server.drawn if each in rollout_of]
    assert len(seeds) == len(set(seeds))
    return Counter(rollout_of[each] for each in seeds)


@pytest.mark.full  # the engine alone: the tests around it
def test_each_prompt_is_drawn_and_trained_once_in_order(standing, tmp_path):
    """Two epochs of two rollouts, in the loader's order; the server's state says the rest."""
    run = fit(tmp_path / "run", *SHORT, *arguments_for(standing, tmp_path), recorded())
    order = prompts_in_order(run)
    assert Recorder.trained == order
    for epoch in (order[:2], order[2:]):
        assert sorted(chain(*epoch)) == list(range(16))
    assert drawn_once(standing, run.model.seed, 6) == dict.fromkeys(range(4), 8)
    assert column(tmp_path / "run", "rollout/staleness") == [0, 1, 1, 1]
    assert column(tmp_path / "run", "rollout/staleness_max") == [0, 1, 1, 1]
    gaps = column(tmp_path / "run", "rollout/engine_gap")
    assert gaps[0] < 1e-5
    assert min(gaps[1:]) > 1e-4  # and SamplerGap has not warned
    assert column(tmp_path / "run", "rollout/engine_bounded") == pytest.approx([0] * 4, abs=0.1)
    assert run.model.engine.ahead.num_discarded == 0
    assert not list((tmp_path / "weights").iterdir())


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_very_next_prompts(standing, tmp_path, capfd):
    """The rollout in flight is lost, its server does not answer, and its prompts are drawn anew."""
    arguments = [*SHORT, *arguments_for(standing, tmp_path), saving(every=1)]
    with pytest.raises(SystemExit) as info:
        fit(tmp_path / "lives", *arguments, recorded(after=2, number=int(signal.SIGTERM)))
    assert info.value.code == 75
    assert not drawing()
    run = fit(tmp_path / "lives", *arguments, recorded(), "--ckpt_path=auto")
    order = prompts_in_order(run)
    assert Recorder.trained == order
    assert int(run.model.num_rollouts) == 4
    (last,) = (tmp_path / "lives").glob("version_1")
    assert column(last, "rollout/staleness")[-2:] == [0, 1]


@pytest.mark.full  # what is being drawn is dropped at once: above
def test_an_error_while_a_server_hangs_ends_the_run_at_once(standing, tmp_path):
    """The second rollout is asked for, and is never answered."""
    real, second = standing.answer, {request_seed(0, 1, index) for index in range(16)}

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if body.get("seed") in second:
            standing.released.wait(HANG_SECONDS)
        return real(path, body)

    standing.answer = answer
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(tmp_path, *SHORT, *arguments_for(standing, tmp_path), recorded(after=1))
    assert not drawing()  # before the server is released
    assert time.monotonic() - started < HANG_SECONDS / 2


@pytest.mark.slow
def test_after_a_rollback_the_next_rollout_is_of_the_restored_weights(standing, tmp_path):
    guard = adding("CollapseGuard", action="rollback", baseline=1, detectors={"mine": ALWAYS})
    with pytest.warns(UserWarning, match="mine"):
        run = fit(tmp_path, *SHORT, *arguments_for(standing, tmp_path), guard, recorded())
    assert column(tmp_path, "rollout/staleness") == [0, 1, 0, 1]
    assert run.model.engine.ahead.num_discarded == 1
    gaps = column(tmp_path, "rollout/engine_gap")
    assert max(gaps[0], gaps[2]) < 1e-5
    assert [len(each) for each in Recorder.trained] == [8] * 4


@pytest.mark.full  # one ends both: below; two share a server: test_vllm_episodes
def test_two_processes_draw_ahead_as_one_does(standing, tmp_path):
    """The first passes the weights, each draws its own prompts, and no collective is mixed up."""
    long = [*ON_TWO_OR_ONE, "--trainer.limit_train_batches=3"]
    arguments = [*long, *arguments_for(standing, tmp_path)]
    launch(tmp_path, {"two": [*arguments, *on("ddp", 2)]}, forks=2)
    launch(tmp_path, {"one": arguments})
    assert_same_weights(weights(tmp_path, "two"), weights(tmp_path, "one"))
    assert_same_metrics(logged(tmp_path, "two"), logged(tmp_path, "one"))
    rows = [row for row in logged(tmp_path, "two") if "rollout/staleness" in row]
    assert [row["rollout/staleness"] for row in rows] == [0, 1, 1]


@pytest.mark.slow
def test_a_draw_ahead_that_fails_on_one_process_ends_both(standing, tmp_path):
    real, asked = standing.answer, {request_seed(0, 1, index): index for index in range(32)}

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if asked.get(body.get("seed", -1), 0) and first.acquire(blocking=False):
            return 400, {"error": {"message": "not this one"}}
        return real(path, body)

    first = threading.Lock()  # of several requests at one time, one takes it
    standing.answer = answer
    told = both_end(tmp_path, [*ON_TWO_OR_ONE, *arguments_for(standing, tmp_path), *on("ddp", 2)])
    said = "400 to /v1/completions: not this one"
    assert all(re.search(rf"[Ee]rror: .*{said}", text) for text in told)
    assert sum(bool(re.search(rf"process \d failed: .*{said}", text)) for text in told) == 1


@pytest.mark.slow
def test_groups_that_are_drawn_again_have_the_present_weights(standing, tmp_path):
    """With dynamic sampling a rollout has groups of older weights, and of the present ones."""
    overlay = f"--config={ROOT}/configs/objectives/dynamic_sampling.yaml"
    fit(tmp_path, *SHORT, *arguments_for(standing, tmp_path), overlay)
    extra = column(tmp_path, "dynamic/extra_groups")
    assert max(extra[1:]) > 0
    found = column(tmp_path, "rollout/staleness")
    assert found[0] == 0
    assert all(0 < each <= 1 for each in found[1:])
    assert min(found[1:]) < 1
    assert column(tmp_path, "rollout/staleness_max") == [0, 1, 1, 1]


def test_the_overlay_is_built_by_the_command_line(monkeypatch):
    monkeypatch.chdir(ROOT)
    overlays = ("engine/vllm_server", "engine/vllm_async")
    run = build(
        [
            "--config=configs/quickstart.yaml",
            *(f"--config=configs/{each}.yaml" for each in overlays),
        ]
    )
    engine = run.model.engine
    assert isinstance(engine, VLLMServerEngine)
    assert (engine.staleness, engine.max_ratio) == (1, 2.0)
    assert engine.weighting == Correction(2.0, "token_truncate")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"staleness": -1}, "staleness=-1 with max_ratio=2.0: staleness must be at least 0"),
        ({"max_ratio": None}, "staleness=1 with max_ratio=None: .* old weights need max_ratio"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings, message):
    given = {"server": "http://localhost:1", "weights_folder": "w", "staleness": 1, **settings}
    with pytest.raises(ValueError, match=message):
        VLLMServerEngine(**given)


def test_data_that_nobody_can_look_ahead_in_is_refused(tmp_path):
    module = SimpleNamespace(
        engine=VLLMServerEngine("http://localhost:1", "w", staleness=1),
        trainer=SimpleNamespace(datamodule=LightningDataModule()),
    )
    with pytest.raises(ValueError, match=r"staleness=1 draws .* such as PromptData; .*staleness=0"):
        _check_look_ahead(module)


@pytest.mark.parametrize(
    ("limits", "left"),
    [  # epochs, batches of one, epoch, batch; steps and those made: 4 updates in a rollout
        ((2, 3, 0, 0, -1, 0), 5),
        ((2, 3, 1, 2, -1, 20), 0),
        ((-1, 3, 5, 1, 80, 64), 3),
        ((2, 3, 0, 1, 9, 4), 1),
        ((1, 3, 0, 1, 400, 4), 1),
    ],
)
def test_no_rollout_is_drawn_after_the_last_one(limits, left):
    epochs, batches, epoch, batch, steps, made = limits
    loop = SimpleNamespace(max_epochs=epochs, batch_idx=batch)
    trainer = SimpleNamespace(
        fit_loop=loop,
        num_training_batches=batches,
        current_epoch=epoch,
        max_steps=steps,
        global_step=made,
    )
    assert rollouts_left(trainer, 4) == left


def test_an_evaluation_is_no_coming_rollout_of_a_run_without_end():
    """Its draws would never be claimed, and nothing would be drawn ahead any more."""
    trainer = SimpleNamespace(
        fit_loop=SimpleNamespace(max_epochs=-1, batch_idx=0), num_training_batches=3,
        current_epoch=0, max_steps=-1, datamodule=SimpleNamespace(upcoming=lambda ahead: ahead),
    )  # fmt: skip
    module: Any = SimpleNamespace(num_rollouts=5, trainer=trainer, plan=UpdatePlan())
    assert upcoming_prompts(module, 7) == 2
    for number in (VALIDATION_STEP, VALIDATION_STEP + 1, PREDICTION_ROLLOUT):
        assert upcoming_prompts(module, number) is None
