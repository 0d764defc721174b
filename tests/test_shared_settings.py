"""Group size and the gold answers' column: said in the data module alone, or alike, also without
the command line.
"""

from __future__ import annotations

import pytest
import torch
from lightning import LightningDataModule

from callbacks import CompletionWriter
from rlif_lightning import (
    ArithmeticProblems,
    ClusterVote,
    GoldAnswer,
    Policy,
    PromptData,
    RewardHead,
    RewardOutput,
    RLIFModule,
    RLIFTrainer,
    Sampling,
    WeightedReward,
)
from rlif_lightning.evaluation.prediction_files import PredictionFiles, Predictions
from rlif_lightning.model.loading import resolve_model

SEEN: list[set[str]] = []


class Curious(RewardHead):
    """Scores nothing, and remembers the columns that it could see."""

    def forward(self, rollout):
        SEEN.append(set(rollout.prompts.columns))
        return RewardOutput(torch.arange(len(rollout.texts)).float())


class Reader(Curious):
    columns = ("answer",)


def data(**given) -> PromptData:
    source = ArithmeticProblems(size=8, validation_size=8)
    settings = {"group_size": 2, "prompts_per_rollout": 4, "answer_column": "answer"} | given
    return PromptData(source, resolve_model("rlif-arithmetic"), **settings)


def module(head: RewardHead, **given) -> RLIFModule:
    return RLIFModule(
        Policy("rlif-arithmetic"),
        {"mine": WeightedReward(head), "vote": WeightedReward(ClusterVote())},
        sampling=Sampling(max_new_tokens=4),
        **given,
    )


def trainer(folder, **given) -> RLIFTrainer:
    return RLIFTrainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=0,
        **given,
    )


def test_a_head_that_names_the_gold_column_is_refused_without_the_command_line(tmp_path):
    with pytest.raises(ValueError, match="reward 'mine' names the column 'answer', which shows"):
        trainer(tmp_path).fit(module(Reader()), data())


@pytest.mark.slow
def test_the_module_takes_both_from_the_data_module(tmp_path):
    SEEN.clear()
    built = module(Curious())
    trainer(tmp_path).fit(built, data())
    assert (built.group_size, built.answer_column) == (2, "answer")
    assert built.rewards.answer_column == "answer"
    assert [set()] == SEEN
    # The next data module is asked anew.
    trainer(tmp_path).predict(built, data(group_size=3, answer_column=None))
    assert (built.group_size, built.answer_column) == (3, None)


def test_preflight_takes_both_from_the_data_module(tmp_path):
    built = module(Curious())
    found = trainer(tmp_path).preflight(built, data(), prompts=2)
    assert (found.group_size, built.answer_column) == (2, "answer")
    with pytest.raises(ValueError, match="reward 'mine' names the column 'answer'"):
        trainer(tmp_path).preflight(module(Reader()), data(), prompts=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"group_size": 4}, "group_size=4 of RLIFModule differs from group_size=2 of PromptData"),
        (
            {"answer_column": "question"},
            "answer_column='question' of RLIFModule differs from answer_column='answer'",
        ),
    ],
)
def test_what_differs_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(module(Curious(), **given), data())


def test_a_data_module_that_does_not_say_leaves_it_to_the_module(tmp_path):
    other = LightningDataModule()
    with pytest.raises(ValueError, match="group_size is not set: give it to RLIFModule"):
        module(Curious()).read_settings_of(other)
    built = module(GoldAnswer("answer"), group_size=3, answer_column="answer")
    built.read_settings_of(other)
    assert (built.group_size, built.answer_column) == (3, "answer")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices")
def test_callbacks_are_set_up_before_the_module_and_know_both(tmp_path):
    writer = CompletionWriter(write_gold=True, show=[])
    trainer(tmp_path, callbacks=[writer]).fit(module(Curious()), data())
    [path] = tmp_path.rglob("completions.jsonl")  # beside events.jsonl
    written = path.read_text()
    assert '"gold"' in written
    files = PredictionFiles(Predictions())
    trainer(tmp_path, callbacks=[files]).predict(module(Curious()), data())
    rows = (tmp_path / "predictions").rglob("completions-*.jsonl")
    assert sum(len(path.read_text().splitlines()) for path in rows) == 16
