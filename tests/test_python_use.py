"""Runs that are built in Python: what a person may pass, both trainers, and the trained module."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from harness.files import ROOT
from harness.python_runs import ROWS, data_of
from rlif_lightning import (
    ClusterVote,
    Evaluation,
    MeanLogprob,
    Policy,
    RewardHead,
    RewardOutput,
    RLIFModule,
    RLIFTrainer,
    Sampling,
    UpdatePlan,
    WeightedReward,
)
from rlif_lightning.data.given_problems import GivenProblems, as_source
from rlif_lightning.data.sources import HubDataset, LocalFiles
from rlif_lightning.data.streams import Streamed
from rlif_lightning.data.tokenizer import resolve_model
from rlif_lightning.learning.optimizer import LearningRateSchedule, check_optimizer
from rlif_lightning.model.given_policy import as_policy
from rlif_lightning.running.metrics_csv import read_logged
from rlif_lightning.running.rebuilt import arguments_in
from rlif_lightning.running.run_settings import model_settings
from rlif_lightning.running.setup_checks import tell_seed

QUIET = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": False,
}
# Lightning's own advice, which a person may read and a test need not.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*weights_only"),
]


def module_of(policy: Any = "rlif-arithmetic", **settings: Any) -> RLIFModule:
    rewards = {"vote": ClusterVote(), "certainty": MeanLogprob()}
    return RLIFModule(
        policy,
        **{
            "rewards": rewards,
            "sampling": Sampling(max_new_tokens=24),
            "update": UpdatePlan(updates_per_rollout=2),
            "optimizer": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0),
            **settings,
        },
    )


def trained(kind: type, folder: Path, steps: int = 4, **settings: Any) -> tuple[Any, RLIFModule]:
    trainer = kind(max_steps=steps, default_root_dir=folder, **QUIET, **settings)
    module = module_of()
    trainer.fit(module, data_of())
    return trainer, module


def weights(module: RLIFModule) -> dict[str, torch.Tensor]:
    assert module.policy is not None
    return {name: value.clone() for name, value in module.policy.state_dict().items()}


def test_both_trainers_train_alike_and_the_module_is_used_and_loaded(tmp_path):
    trainer, module = trained(RLIFTrainer, tmp_path / "ours", 2)
    _, other = trained(lightning.Trainer, tmp_path / "stock", 2, enable_checkpointing=False)
    for name, value in weights(module).items():
        assert torch.equal(value, weights(other)[name]), name
    drawn = module.generate(["3+4+5=", "1+2="], group_size=3)
    assert [len(group) for group in drawn] == [3, 3]
    assert module.generate(["3+4+5=", "1+2="], 3) == drawn  # counted, not streamed
    assert module.generate("3+4+5=") == [drawn[0][:1]]
    assert drawn != module_of().generate(["3+4+5=", "1+2="], 3)  # it was trained
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    loaded = RLIFModule.load_from_checkpoint(tmp_path / "run.ckpt")
    assert loaded.generate(["3+4+5=", "1+2="], 3) == drawn
    assert model_settings(loaded) == model_settings(module)
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert saved["format"] == 1
    torch.save({**saved, "format": 2}, tmp_path / "newer.ckpt")
    with pytest.raises(ValueError, match=r"format 2, of a newer version .* up to 1: upgrade"):
        RLIFModule.load_from_checkpoint(tmp_path / "newer.ckpt")
    module.save_pretrained(tmp_path / "model")
    again = module_of(str(tmp_path / "model"))
    assert again.generate(["3+4+5=", "1+2="], 3) == drawn


# The mark: both are read by one comparison, and the one is Lightning's default.
@pytest.mark.slow
@pytest.mark.parametrize("logger", [None, pytest.param(True, marks=pytest.mark.full)])
def test_a_run_writes_its_table_and_checkpoints_without_any_setting(tmp_path, logger):
    """Lightning's own trainer writes TensorBoard files alone, and saves at the end of an epoch."""
    settings = QUIET | {"logger": logger, "default_root_dir": tmp_path}
    trainer = RLIFTrainer(max_steps=4, **settings)
    trainer.fit(module_of(), data_of())
    folder = tmp_path / "version_0"
    assert len(read_logged(folder / "metrics.csv").rows) == 2
    assert [*folder.glob("events.out.tfevents.*")]
    saved = folder / "checkpoints" / "rollout=000002.ckpt"
    assert [*saved.parent.iterdir()] == [saved]
    longer = RLIFTrainer(max_steps=6, **settings)
    longer.fit(module_of(), data_of(), ckpt_path=saved)
    rows = read_logged(tmp_path / "version_1" / "metrics.csv").rows
    assert [row["step"] for row in rows] == ["2"]


def test_the_best_checkpoint_is_found_and_an_unknown_argument_of_loading_refused(tmp_path):
    trainer, module = trained(RLIFTrainer, tmp_path)
    assert trainer.checkpoint_callback.best_model_path.endswith("rollout=000002.ckpt")
    trainer.validate(module, data_of({"train": ROWS, "test": ROWS}), ckpt_path="best")
    with pytest.raises(
        TypeError, match="'rewardz' is no argument of RLIFModule; use one of policy"
    ):
        RLIFModule.load_from_checkpoint(trainer.checkpoint_callback.best_model_path, rewardz={})


def test_an_optimiser_in_the_place_of_its_class_is_refused(tmp_path):
    module = module_of(optimizer=torch.optim.AdamW([torch.zeros(1, requires_grad=True)]))
    trainer = lightning.Trainer(max_steps=2, default_root_dir=tmp_path, **QUIET)
    with pytest.raises(ValueError, match=r"pass its class, or .*partial\(AdamW, lr=...\)"):
        trainer.fit(module, data_of())


def test_an_optimiser_s_name_is_no_class():
    with pytest.raises(ValueError, match=r"pass a class such as torch\.optim\.AdamW, or functools"):
        check_optimizer("adamw", LearningRateSchedule(), 1)  # pyright: ignore[reportArgumentType]


@pytest.mark.full  # problems come in every usual form: below
def test_a_file_of_training_problems_alone_is_trained_on(tmp_path):
    path = tmp_path / "sums.jsonl"
    Dataset.from_list(ROWS).to_json(str(path))
    trainer = RLIFTrainer(max_steps=2, default_root_dir=tmp_path, **QUIET)
    trainer.fit(module_of(), data_of(str(path)))
    assert trainer.global_step == 2


def test_an_evaluation_in_python_writes_its_figures_and_completions(tmp_path):
    module = module_of(evaluation=Evaluation(samples=2, subset_column="question", greedy=False))
    trainer = RLIFTrainer(default_root_dir=tmp_path, **QUIET | {"logger": None})
    trainer.validate(module, data_of({"validation": ROWS[:3]}), verbose=False)
    folder = tmp_path / "version_0"
    (entry,) = json.loads((folder / "evaluation.json").read_text())
    measured = float(trainer.callback_metrics["val/accuracy"])
    assert entry["figures"]["accuracy"]["value"] == pytest.approx(measured)
    assert {*entry["subsets"]} == {row["question"] for row in ROWS[:3]}
    written = (folder / "evaluated" / "val-rollout-000000.jsonl").read_text().splitlines()
    assert len(written) == 6
    RLIFTrainer(default_root_dir=tmp_path / "quiet", **QUIET).validate(
        module, verbose=False, datamodule=data_of({"validation": ROWS[:3]})
    )
    assert not (tmp_path / "quiet").exists()


def test_a_run_for_trying_writes_nothing(tmp_path):
    settings = QUIET | {"logger": None, "default_root_dir": tmp_path}
    RLIFTrainer(fast_dev_run=True, **settings).fit(module_of(), data_of())
    assert [*tmp_path.rglob("*.c*")] == []


class Mine(RewardHead):
    """A head that no checkpoint can name."""

    def forward(self, rollout):
        return RewardOutput(rollout.lengths.float())


@pytest.mark.slow
def test_a_checkpoint_imports_no_class_of_somebody_else(tmp_path):
    trainer = lightning.Trainer(max_steps=2, default_root_dir=tmp_path, **QUIET)
    module = module_of(rewards={"mine": Mine()}, schedule=module_of().schedule)
    trainer.fit(module, data_of())
    trainer.save_checkpoint(tmp_path / "run.ckpt")  # a stock trainer's holds settings as well
    with pytest.raises(ValueError, match=r"give the argument 'rewards' .*Mine is not from this"):
        RLIFModule.load_from_checkpoint(tmp_path / "run.ckpt")
    loaded = RLIFModule.load_from_checkpoint(tmp_path / "run.ckpt", rewards={"mine": Mine()})
    assert loaded.sampling == module.sampling
    for name, value in weights(module).items():
        assert torch.equal(value, weights(loaded)[name]), name


RULE = "model.rewards.judge.head"
NAMES_CODE = {
    "policy": {"model.policy.name": "somebody/model", "model.policy.trust_remote_code": True},
    "rewards": {
        "model.rewards": ["judge"],
        f"{RULE}.class_path": "rlif_lightning.rewards.judged.JudgeHead",
        f"{RULE}.init_args.judge.class_path": "rlif_lightning.judges.rules.RuleJudge",
        f"{RULE}.init_args.judge.init_args.rule": "antigravity.geohash",
    },
}


@pytest.mark.parametrize("name", NAMES_CODE)
def test_a_checkpoint_names_no_code_of_a_model_and_no_function(name):
    given = {"policy", "rewards"} - {name}
    with pytest.raises(ValueError, match=f"cannot give the argument '{name}' .*; pass {name}="):
        arguments_in(NAMES_CODE[name], RLIFModule, given)


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds no model; name another"):
        module_of().save_pretrained(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_settings_are_those_of_yaml_however_they_were_passed():
    plain = module_of()
    spelled = module_of(
        Policy("rlif-arithmetic"),
        rewards={"vote": WeightedReward(ClusterVote()), "certainty": WeightedReward(MeanLogprob())},
    )
    assert model_settings(plain) == model_settings(spelled)
    assert model_settings(plain)["model.policy.name"] == "rlif-arithmetic"


def splits_of(source: Any) -> tuple[list[Any], list[Any]]:
    found = as_source(source)
    sizes = [list(found.load(name)) if found.has(name) else [] for name in ("train", "validation")]
    return sizes[0], sizes[1]


def test_problems_come_in_every_usual_form(tmp_path):
    dataset = Dataset.from_list(ROWS)
    both = DatasetDict(train=dataset, test=dataset.select(range(3)))
    both.save_to_disk(str(tmp_path / "both"))
    dataset.save_to_disk(str(tmp_path / "one"))
    for source in (ROWS, tuple(ROWS), dataset, {"train": ROWS}, tmp_path / "one"):
        assert splits_of(source) == (ROWS, [])
    for source in (both, {"train": dataset, "validation": ROWS[:3]}, str(tmp_path / "both")):
        assert splits_of(source) == (ROWS, ROWS[:3])
    given = GivenProblems(train=ROWS)
    assert as_source(given) is given
    assert as_source("problems.jsonl").paths["train"] == "problems.jsonl"
    assert as_source("openai/gsm8k").name == "openai/gsm8k"


def test_a_column_that_the_first_row_lacks_is_kept():
    rows = [{"question": "1+1="}, {"question": "2+2=", "answer": "4"}]
    assert as_source(rows).load("train")["answer"][:] == [None, "4"]


def test_the_problems_of_test_are_told_to_be_left_out(caplog):
    logging.getLogger("lightning.pytorch").propagate = True
    dataset = Dataset.from_list(ROWS)
    with caplog.at_level(logging.INFO):
        splits_of({"train": dataset, "test": dataset})
    assert not caplog.text
    with caplog.at_level(logging.INFO):
        splits_of(DatasetDict(train=dataset, validation=dataset, test=dataset))
    assert "'test' is not used: validate, test and predict all read 'validation'" in caplog.text


def test_places_may_be_paths(tmp_path):
    path = tmp_path / "sums.jsonl"
    Dataset.from_list(ROWS).to_json(str(path))
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert list(LocalFiles(path).load("train")) == ROWS
    assert list(LocalFiles(validation=[path]).load("validation")) == ROWS
    assert list(HubDataset(tmp_path / "saved").load("train")) == ROWS
    with pytest.raises(ValueError, match=r"unknown suffix '.py'; known are"):
        as_source(__file__).load("train")
    assert Streamed(LocalFiles(path)).window(0)[:] == Dataset.from_list(ROWS)[:]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "train problems of an empty list are not supported: pass a datasets"),
        (["1+1="], r"a list with '1\+1=' are not supported"),
        (7, "train problems of int are not supported"),
        ({"train": Dataset.from_list(ROWS).to_iterable_dataset()}, "pass it alone, to be streamed"),
        ([{"a": 1}, {"a": "x"}], "source: the train problems do not fit together: .*; make each"),
        ({"training": ROWS}, r"\['training'\] of \['training'\] is none of train, validation"),
    ],
)
def test_what_holds_no_problems_is_refused(source, message):
    with pytest.raises((TypeError, ValueError), match=message):
        data_of(source)


def test_without_validation_problems_training_is_not_evaluated(tmp_path, caplog):
    logging.getLogger("lightning.pytorch").propagate = True
    with caplog.at_level(logging.INFO):
        trainer, module = trained(RLIFTrainer, tmp_path)
    assert "no validation problems: training is not evaluated" in caplog.text
    assert "val/accuracy" not in trainer.callback_metrics
    with pytest.raises(ValueError, match="no validation problems were given; pass"):
        RLIFTrainer(default_root_dir=tmp_path, **QUIET).validate(module, data_of())


@pytest.mark.parametrize(
    ("everything", "own", "is_told"), [("5", 0, True), ("5", 3, False), ("0", 0, False)]
)
def test_a_seed_that_reaches_nothing_is_told(monkeypatch, caplog, everything, own, is_told):
    """``lightning.seed_everything`` writes its seed into this variable."""
    logging.getLogger("lightning.pytorch").propagate = True
    monkeypatch.setenv("PL_GLOBAL_SEED", everything)
    with caplog.at_level(logging.INFO):
        tell_seed(own, None)
        tell_seed(0, own)
    told = caplog.text.count("seed_everything(5) reaches neither sampling nor the order")
    assert told == (2 if is_told else 0)


def test_tokenizers_are_the_policy_s_or_an_object():
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("rlif-arithmetic"))
    expected = [tokenizer(row["question"])["input_ids"] for row in ROWS]
    for given in (tokenizer, "rlif-arithmetic"):
        data = data_of(tokenizer=given)
        data.source = GivenProblems(train=ROWS, validation=ROWS)
        data.setup()
        assert [ids.tolist() for ids in data.split("train").token_ids] == expected
    with pytest.raises(ValueError, match="tokenizer is not set, and no policy names one"):
        data_of({"train": ROWS, "test": ROWS}).setup()


def test_policies_are_names_or_settings():
    assert as_policy("x/y") == Policy("x/y") == as_policy(Path("x/y")) == as_policy(Policy("x/y"))
    with pytest.raises(TypeError, match="policy=dict is not supported: pass a hub name"):
        module_of({"name": "x"})


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([ClusterVote()], "pass a mapping of names to rewards"),
        ({"vote": ClusterVote}, r"'vote' is .*; ClusterVote\(\) makes one; pass"),
        ({"vote": 0.5}, "'vote' is 0.5, not a reward head; pass a RewardHead"),
    ],
)
def test_rewards_are_heads(rewards, message):
    with pytest.raises(TypeError, match=message):
        module_of(rewards=rewards)


def test_generate_needs_prompts_that_can_be_read():
    module = module_of()
    with pytest.raises(ValueError, match="0 prompts with group_size=1"):
        module.generate([])
    with pytest.raises(ValueError, match="has no chat template; pass texts"):
        module.generate([{"role": "user", "content": "1+1="}])
    for strange in ([{"from": "human", "value": "1+1="}], [7]):
        with pytest.raises(ValueError, match="is neither a text nor a conversation, a list of"):
            module.generate(strange)
    with pytest.raises(ValueError, match="the prompt '' has no tokens"):
        module.generate([""])


@pytest.mark.slow
def test_the_quickstart_in_python(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    from examples import quickstart

    monkeypatch.setattr(quickstart, "splits", {"train": ROWS, "test": ROWS[:8]})
    made = partial(quickstart.PromptData, max_prompt_tokens=16)
    monkeypatch.setattr(
        quickstart,
        "PromptData",
        lambda source, **given: made(source, **{**given, "group_size": 4}),
    )
    quickstart.main(rollouts=1, folder=str(tmp_path))
    assert "before," in capsys.readouterr().out
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_it_is_fifteen_lines():
    """Of the example's own statements, imports apart."""
    text = (ROOT / "examples" / "quickstart.py").read_text()
    body = text[text.index("terms = ") : text.index("    before, *_")]
    lines = [line for line in body.splitlines() if line.strip() and '"""' not in line]
    assert len(lines) <= 15
