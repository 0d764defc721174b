"""Teachers in runs: feedback and its prompts, averages in checkpoints, gold answers, refusals."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from transformers import AutoTokenizer

from callbacks.guard import kinds_of_run
from harness.files import ROOT
from harness.python_runs import NAME, Run, adamw, at, data, module, sums
from harness.rollouts import handmade
from harness.runs import fit
from rlif_lightning import (
    DistIL,
    FeedbackWriter,
    GoldAnswer,
    PromptData,
    PromptFormat,
    Replay,
    RewardOutput,
    Sampling,
    Teacher,
    WeightedReward,
)
from rlif_lightning.data.prompt_format import PromptRenderer
from rlif_lightning.learning.feedback import feedback_texts, right_siblings
from rlif_lightning.model.loading import LoRA, Policy
from rlif_lightning.rewards.controls import Length, Random
from rlif_lightning.running import teachers
from rlif_lightning.running.checkpoint_faults import why_unusable

SHORT = "{feedback} {prompt}"
LONG = {"sampling": Sampling(max_new_tokens=12)}


class Words(FeedbackWriter, Callback):
    """Writes the number of the completion in its group, and nothing on the first one."""

    def feedback(self, rollout, outputs):
        self.seen = set(rollout.prompts.columns)
        size = rollout.group_size
        return [str(row % size) if row % size else "" for row in range(len(rollout.texts))]


def taught(source: str = "callback", **settings: Any) -> DistIL:
    given = {"feedback": source, "template": SHORT, "top_k": 5}
    names = {name: settings.pop(name) for name in list(settings) if name in vars(Teacher())}
    return DistIL(teacher=Teacher(**(given | names)), **settings)


def learner(objective: DistIL, **settings: Any) -> Any:
    rewards = {"gold": WeightedReward(GoldAnswer())}
    return module(**({"objective": objective, "rewards": rewards, **LONG} | settings))


def problems(**settings: Any) -> PromptData:
    given = {"source": sums(16), "answer_column": "answer", "group_size": 3}
    return data(**(given | {"prompts_per_rollout": 4} | settings))


def test_a_sibling_is_the_next_right_one_and_never_oneself():
    scores = torch.tensor([1.0, 0.0, 1.0, float("nan"), 0.5, 0.4])
    found = right_siblings(scores, ["a", "b", "c", "d", "e", "f"], 3)
    assert found == ["c", "c", "a", "e", None, "e"]
    assert right_siblings(torch.ones(2), ["a", "b"], 1) == [None, None]
    assert right_siblings(torch.ones(2), ["", "b"], 2) == ["b", None]


def test_feedback_of_a_column_is_its_text():
    rollout = handmade(["1", "2", "3", "4"], 2, hint=["use 3", None], n=[{"a": 0}, {"a": ""}])
    for column, expected in (
        ("hint", ["use 3", "use 3", None, None]),
        ("n.a", ["0", "0"] + [None] * 2),
    ):
        assert feedback_texts(Teacher(column), rollout, {}, None, None) == expected


def test_a_writer_sees_the_columns_that_it_names_and_must_answer_for_all():
    rollout, writer = handmade(["1", "2"], 2, answer=["3"], hint=["x"]), Words()
    assert feedback_texts(Teacher("callback"), rollout, {}, None, writer) == [None, "1"]
    assert writer.seen == set()
    writer.columns = ("hint",)
    feedback_texts(Teacher("callback"), rollout, {}, None, writer)
    assert writer.seen == {"hint"}
    writer.feedback = lambda rollout, outputs: ["one"]
    with pytest.raises(ValueError, match=r"Words.feedback returned \['one'\]; a text or None"):
        feedback_texts(Teacher("callback"), rollout, {}, None, writer)


def test_the_template_is_around_the_last_turn_alone():
    form = PromptFormat("Q: {prompt} A:", examples=[{"question": "1+1?", "answer": " 2"}])
    renderer = PromptRenderer("question", form)
    shown = renderer.render({"question": "2+3?"}, lambda prompt: f"<{prompt}>")
    assert shown == "Q: 1+1? A: 2\n\n<Q: 2+3? A:>"
    assert renderer.render({"question": "2+3?"}) == "Q: 1+1? A: 2\n\nQ: 2+3? A:"


class Prompts(Callback):
    """Remembers what the teacher reads, and how far the average is from the policy."""

    def __init__(self) -> None:
        self.read, self.teachers, self.policies = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.teachers.append(weight(pl_module.teacher))
        self.policies.append(weight(pl_module.policy))


def weight(model: Any) -> torch.Tensor:
    return torch.cat([each.detach().flatten() for each in model.parameters()]).clone()


@pytest.mark.slow
def test_the_average_follows_after_each_rollout(tmp_path):
    seen = Prompts()
    run = Run(tmp_path, 3, learner(taught(ema_rate=0.25)), problems(), Words(), seen)
    (t0, t1, t2), (p0, p1, p2) = seen.teachers, seen.policies
    assert torch.equal(t0, p0)
    assert not torch.equal(p0, p1)
    torch.testing.assert_close(t1, t0 + 0.25 * (p1 - t0), rtol=0, atol=1e-7)
    torch.testing.assert_close(t2, t1 + 0.25 * (p2 - t1), rtol=0, atol=1e-7)
    figures = run.trainer.callback_metrics
    assert float(figures["teacher/coverage"]) == pytest.approx(2 / 3)
    assert float(figures["teacher/divergence"]) > 0
    assert 0 < float(figures["teacher/tail"]) < 1
    assert "reward/gold/gradient_norm" not in figures


@pytest.mark.full  # a checkpoint without it is refused: below
def test_a_resumed_run_is_the_uninterrupted_one_with_its_average(tmp_path):
    def run(folder: Path, **way: Any) -> Run:
        return Run(folder, 4, learner(taught(ema_rate=0.25)), problems(), Words(), **way)

    whole = run(tmp_path / "whole")
    path = at(tmp_path / "whole" / "checkpoints", 2)
    assert why_unusable(path) is None
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert {name.partition(".")[0] for name in saved} >= {"policy", "teacher"}
    again = run(tmp_path / "again", ckpt_path=path)
    states = whole.state(), again.state()
    assert states[0].keys() == states[1].keys()
    assert not [k for k, value in states[0].items() if not torch.equal(value, states[1][k])]
    assert any(name.startswith("teacher.") for name in states[0])


@pytest.mark.slow
def test_a_checkpoint_without_the_average_is_refused_and_a_fork_begins_one(tmp_path):
    plain = Run(tmp_path / "plain", 1, module(**LONG), problems())
    source, objective = at(plain.folder / "checkpoints", 1), taught()
    with pytest.raises(ValueError, match=r"model\.objective\.class_path.*fork_from=") as refused:
        Run(tmp_path / "refused", 2, module(objective=objective, **LONG), problems(), Words(),
            ckpt_path=source)  # fmt: skip
    assert "begin a new run" in str(refused.value)
    seen = Prompts()
    fork = module(objective=objective, **LONG)
    Run(tmp_path / "fork", 1, fork, problems(), Words(), seen, fork_from=source)
    assert torch.equal(seen.teachers[0], seen.policies[0])
    assert torch.equal(seen.policies[0], weight(plain.module.policy))


@pytest.mark.slow
def test_a_frozen_teacher_is_in_no_checkpoint(tmp_path):
    seen = Prompts()
    run = Run(tmp_path, 2, learner(taught(ema_rate=0.0)), problems(), Words(), seen)
    assert torch.equal(seen.teachers[0], seen.teachers[1])
    saved = torch.load(at(tmp_path / "checkpoints", 2), weights_only=True)["state_dict"]
    assert not [name for name in saved if name.startswith("teacher")]
    second = taught(ema_rate=0.0, model=Policy(NAME))
    other = Run(tmp_path / "second", 2, learner(second), problems(), Words())
    assert torch.equal(weight(run.module.policy), weight(other.module.policy))


@pytest.mark.slow
def test_adapters_have_their_base_or_their_own_average_as_a_teacher(tmp_path):
    pytest.importorskip("peft")
    lora = Policy(NAME, lora=LoRA(rank=2))
    frozen = learner(taught(ema_rate=0.0), policy=lora, optimizer=adamw(1e-2))
    Run(tmp_path / "frozen", 1, frozen, problems(), Words())
    assert frozen.teacher is None
    seen = Prompts()
    average = learner(taught(ema_rate=0.5), policy=lora, optimizer=adamw(1e-2))
    Run(tmp_path / "average", 2, average, problems(), Words(), seen)
    assert not torch.equal(seen.policies[0], seen.policies[1])
    middle = (seen.policies[0] + seen.policies[1]) / 2
    torch.testing.assert_close(seen.teachers[1], middle, rtol=0, atol=1e-7)


class Nothing(Words):
    """Has nothing to say."""

    def feedback(self, rollout, outputs):
        return [None] * len(rollout.texts)


class Spells(Words):
    """Spells out a special token, as a completion may."""

    def feedback(self, rollout, outputs):
        return ["</s>1"] * len(rollout.texts)


@pytest.mark.slow
def test_a_special_token_that_feedback_spells_out_is_plain_text(tmp_path, monkeypatch):
    read, made = [], teachers.feedback_prompts
    monkeypatch.setattr(
        teachers, "feedback_prompts", lambda *given: read.extend(made(*given)) or read
    )
    run = Run(tmp_path, 1, learner(taught()), problems(), Spells())
    tokenizer = run.module.policy.tokenizer
    assert tokenizer("</s>1").input_ids[0] == tokenizer.eos_token_id
    assert len(read) == 12
    assert not any(tokenizer.eos_token_id in prompt for prompt in read)


@pytest.mark.slow
def test_completions_without_feedback_have_no_loss(tmp_path):
    seen = Prompts()
    run = Run(tmp_path, 2, learner(taught()), problems(), Nothing(), seen)
    assert torch.equal(seen.policies[0], weight(run.module.policy))
    assert float(run.trainer.callback_metrics["teacher/coverage"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("credit", [pytest.param("local", marks=pytest.mark.full), "sequence"])
def test_micro_batches_change_nothing(tmp_path, credit):
    """Groups are split between micro-batches, and the siblings' mean is the same."""
    found = []
    for tokens in (8192, 1):
        plan = replace(module().plan, micro_batch_tokens=tokens)
        policy = Policy(NAME, dtype="float64")
        model = learner(taught(credit=credit), policy=policy, update=plan)
        Run(tmp_path / str(tokens), 1, model, problems(), Words())
        found.append(weight(model.policy))
        assert not torch.equal(found[-1], weight(model.teacher))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_gold_answers_in_feedback_need_consent_and_are_reported(tmp_path, capfd):
    with pytest.raises(ValueError, match=r"the column 'answer' shows gold answers \(answer\)"):
        Run(tmp_path, 1, learner(taught("answer")), problems())
    model = learner(taught("answer", needs_gold=True))
    coin = {"coin": WeightedReward(Random())}
    free = module(objective=taught("answer", needs_gold=True), rewards=coin)
    run = Run(tmp_path, 1, model, problems())
    assert float(run.trainer.callback_metrics["teacher/coverage"]) == 1
    assert "label_free" not in kinds_of_run(free, {"coin": RewardOutput(torch.zeros(2))})
    writer = Words()
    writer.columns = ("answer",)
    with pytest.raises(ValueError, match="Words shows gold answers"):
        Run(tmp_path, 1, learner(taught()), problems(), writer)
    writer.columns, writer.needs_gold = (), True
    with pytest.raises(ValueError, match="needs_gold=true if that is meant"):
        Run(tmp_path, 1, learner(taught()), problems(), writer)
    Run(tmp_path, 1, learner(taught(needs_gold=True)), problems(), writer)
    assert "answer" in writer.seen


class Narrow(Callback):
    """Gives the teacher fewer positions than its prompts have."""

    def on_train_start(self, trainer, pl_module: Any) -> None:
        pl_module.teacher.limits = replace(pl_module.teacher.limits, positions=8)


def test_feedback_that_is_too_long_is_no_feedback(tmp_path):
    with pytest.warns(UserWarning, match=r"leaves out .* that model\.objective\.teacher shows"):
        run = Run(tmp_path, 1, learner(taught()), problems(), Words(), Narrow())
    assert float(run.trainer.callback_metrics["teacher/coverage"]) == 0


def neutral() -> dict[str, WeightedReward]:
    return {"gold": WeightedReward(GoldAnswer(), length="neutral")}


class Peeks(Words):
    """Tells a completion what the head of the gold answers says about it."""

    def feedback(self, rollout, outputs):
        assert "length" in outputs
        return [str(score) for score in outputs["gold"].scores.tolist()]


def test_a_writer_without_consent_does_not_see_what_gold_heads_say(tmp_path):
    """Also of a head that is only measured: the run would not be label-free, and not say so."""
    rewards = two_rewards() | {"gold": WeightedReward(GoldAnswer(), weight=0.0)}
    with pytest.raises(ValueError, match=r"outputs\['gold'\]: this reward reads gold answers"):
        Run(tmp_path, 1, learner(taught(), rewards=rewards), problems(), Peeks())
    writer = Peeks()
    writer.needs_gold = True
    Run(tmp_path, 1, learner(taught(needs_gold=True), rewards=rewards), problems(), writer)


def two_rewards() -> dict[str, WeightedReward]:
    return {"gold": WeightedReward(GoldAnswer()), "length": WeightedReward(Length())}


class Switching(Callback):
    """Gives the run another teacher before its second rollout."""

    def on_train_batch_start(self, trainer, pl_module: Any, batch, batch_idx) -> None:
        if int(pl_module.num_rollouts) == 1:
            teacher = replace(pl_module.objective.teacher, top_k=9)
            pl_module.objective = replace(pl_module.objective, teacher=teacher)


REFUSED = {
    "replay": (
        lambda: learner(taught(), replay=Replay(1)), {}, [Words()], "set model.replay=null",
    ),
    "no writer": (lambda: learner(taught()), {}, [], "needs one FeedbackWriter .* there are 0"),
    "two writers": (lambda: learner(taught()), {}, [Words(), Nothing()], "there are 2"),
    "a writer too many": (
        lambda: learner(taught("sibling")), {}, [Words()], "feedback=sibling reads none of it",
    ),
    "a writer without teacher": (
        lambda: module(**LONG), {}, [Words()], "Words writes feedback that no teacher reads",
    ),
    "no column": (lambda: learner(taught("hint")), {}, [], "feedback='hint' is not in the train"),
    "two rewards": (
        lambda: learner(taught("sibling"), rewards=two_rewards()), {}, [], "have several; set the",
    ),
    "scores moved by length": (
        lambda: learner(taught("sibling"), rewards=neutral()), {}, [], "set length=keep",
    ),
    "no siblings": (
        lambda: learner(taught("sibling")), {"group_size": 1}, [], "without siblings",
    ),
    "rounding": (
        lambda: learner(taught(), policy=Policy(NAME, dtype="bfloat16")), {}, [Words()],
        r"ema_rate=0\.05: in weights of torch.bfloat16",
    ),
    "another teacher": (
        lambda: learner(taught()), {}, [Words(), Switching()], "cannot be changed in a run",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_by_name(tmp_path, name):
    model, of_data, callbacks, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        Run(tmp_path, 2, model(), problems(**of_data), *callbacks)


@pytest.mark.slow
def test_a_second_model_teaches_unless_its_tokenizer_is_another(tmp_path, tiny_models):
    """The tiny models have the tokenizer of the embedded one."""
    folder = tmp_path / "other"
    shutil.copytree(tiny_models["llama"], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["and"])
    tokenizer.save_pretrained(folder)
    same, other = (
        learner(taught(ema_rate=0.0, model=Policy(str(path))))
        for path in (tiny_models["llama"], folder)
    )
    run = Run(tmp_path / "same", 1, same, problems(), Words())
    assert float(run.trainer.callback_metrics["policy/grad_norm"]) > 0
    with pytest.raises(ValueError, match=r"other' has another tokenizer than model\.policy\.name="):
        Run(tmp_path / "refused", 1, other, problems(), Words())


def test_tokens_of_an_older_policy_are_refused(tmp_path):
    model = learner(taught())
    model.engine.staleness = 1
    with pytest.raises(ValueError, match="staleness=1: DistIL credits a token"):
        Run(tmp_path, 1, model, problems(), Words())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ema_rate": 1.0}, r"ema_rate=1\.0 must lie in \[0, 1\)"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"template": "{prompt}"}, "must have the fields {prompt} and {feedback}"),
        ({"template": "{prompt} {feedback} {answer}"}, "and no other"),
        ({"model": Policy(NAME)}, r"ema_rate=0\.05 would have no effect"),
        ({"model": Policy(NAME, lora=LoRA()), "ema_rate": 0.0}, "untrained adapters"),
        ({"needs_gold": True}, "has no effect with feedback=sibling"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Teacher(**settings)


@pytest.mark.full  # test_commands_in_docs.py parses it; the average's run trains
def test_the_overlay_is_the_default_and_trains(tmp_path):
    overlays = [
        f"--config={ROOT / 'configs' / name}" for name in ("gold.yaml", "related/distil.yaml")
    ]
    run = fit(
        tmp_path, *overlays, f"--model.objective.teacher.template={SHORT}",
        "--model.rewards={gold: {head: GoldAnswer}}",
    )  # fmt: skip
    assert run.model.objective == DistIL(teacher=Teacher(template=SHORT))
    logged = run.trainer.callback_metrics
    assert float(logged["policy/grad_norm"]) > 0
    assert 0 < float(logged["teacher/coverage"]) <= 1
    assert run.trainer.global_step == 8
