"""The table of what a run remembers of each problem: values, owners, checkpoints, processes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import CollapseGuard
from harness.forked import on_two_processes
from harness.launches import BASE as DISTRIBUTED
from harness.launches import launch, on
from harness.python_runs import Run, at, data, module, sums
from harness.runs import saving
from rlif_lightning import RewardHead, RewardOutput, Rollout
from rlif_lightning.data.prompt_table import LONGEST_TEXT, PromptTable, Visit
from rlif_lightning.rewards.base import WeightedReward
from rlif_lightning.running.checkpoint_faults import read_rest


class Visits(RewardHead):
    """Scores a completion by the visits of its problem before this one; remembers its length."""

    def use_table(self, table: PromptTable, name: str) -> None:
        self.table = table
        self.count = table.column(f"{name}/count", name, 2)
        self.last = table.column(f"{name}/last", name, 0)

    def forward(self, rollout: Rollout) -> RewardOutput:
        rows = rollout.prompts.index.tolist()
        found = self.count.numbers(rows, (0.0, -1.0))
        texts = self.last.texts(rows)
        assert [text is None for text in texts] == (found[:, 0] == 0).tolist()
        lengths = rollout.lengths.view(-1, rollout.group_size).double().mean(-1)
        for row, (visits, _), length in zip(rows, found.tolist(), lengths.tolist(), strict=True):
            if self.training and self.table.visit is not None:
                self.count.put(row, (visits + 1, length))
                self.last.put(row, f"{self.table.visit.rollout_number}/{self.table.visit.epoch}")
        visits = found[:, 0].float().repeat_interleave(rollout.group_size)
        noise = torch.arange(len(visits)) % rollout.group_size  # a spread, so that it trains
        return RewardOutput((visits + noise).to(rollout.mask.device))


def rewards() -> dict[str, WeightedReward]:
    return {"visits": WeightedReward(Visits())}


def plain(state: dict[str, Any]) -> dict[str, Any]:
    """A table's state with lists in place of tensors."""
    return {
        name: {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in column.items()}
        for name, column in state.items()
    }


def test_what_a_rollout_writes_is_read_after_it():
    table = PromptTable()
    column = table.column("weights", "head", 2)
    column.put(7, (1.5, 0.5))
    assert column.numbers([7, 3], (1, 1)).tolist() == [[1, 1], [1, 1]]
    table.gather()
    assert column.numbers([3, 7], (1, 1)).tolist() == [[1, 1], [1.5, 0.5]]
    column.put(3, (0.25, 4))
    table.gather()
    assert column.numbers([3, 7], (1, 1)).tolist() == [[0.25, 4], [1.5, 0.5]]
    assert column.numbers([], (1, 1)).shape == (0, 2)


def test_one_number_and_texts():
    table = PromptTable()
    number, text = table.column("rate", "a"), table.column("answer", "b", 0)
    number.put(1, 0.1)
    text.put(2, "12")
    table.gather()
    assert number.numbers([1, 2], [-1]).tolist() == [[0.1], [-1]]
    assert text.texts([1, 2]) == [None, "12"]


def test_a_visit_is_there_while_a_rollout_is_scored_only():
    table = PromptTable()
    assert table.visit is None
    with table.visiting(4, 1):
        assert table.visit == Visit(4, 1)
    assert table.visit is None
    with pytest.raises(KeyError), table.visiting(4, 1):
        {}["a head failed"]
    assert table.visit is None


@pytest.mark.parametrize(
    ("width", "value"),
    [(2, (1.0,)), (2, 1.0), (1, "1"), (1, math.nan), (2, (1, math.inf)), (0, 1.0)],
)
def test_a_value_of_another_kind_is_refused(width, value):
    column = PromptTable().column("it", "head", width)
    with pytest.raises(ValueError, match="column 'it' of head holds up to"):
        column.put(0, value)


def test_long_texts_and_second_values_are_refused():
    column = PromptTable().column("it", "head", 0)
    column.put(0, "x" * LONGEST_TEXT)
    with pytest.raises(ValueError, match="64 characters"):
        column.put(1, "x" * (LONGEST_TEXT + 1))
    with pytest.raises(ValueError, match="problem 0 was written twice in one rollout"):
        column.put(0, "y")


def test_a_column_has_one_owner_and_one_width():
    table = PromptTable()
    column = table.column("flips", "Guard")
    assert table.column("flips", "Guard") is column
    for owner, width in (("Other", 1), ("Guard", 2)):
        with pytest.raises(ValueError, match="'flips' belongs to Guard with width 1"):
            table.column("flips", owner, width)


def test_state_is_plain_ascending_and_comes_back_bit_for_bit(tmp_path):
    table = PromptTable()
    column, text = table.column("a", "x", 2), table.column("b", "y", 0)
    table.column("empty", "z", 3)
    for row in (5, 2, 9):
        column.put(row, (1 / 3 * row, 1e-300))
        text.put(row, f"{row}!")
    table.gather()
    column.put(1, (1, 1))  # of a rollout that is not over
    torch.save(table.state_dict(), tmp_path / "table.pt")
    state = torch.load(tmp_path / "table.pt", weights_only=True)
    assert state["a"]["rows"].tolist() == [2, 5, 9]
    assert state["empty"]["values"].shape == (0, 3)
    known, later = PromptTable(), PromptTable()
    for name, owner, width in (("a", "x", 2), ("b", "y", 0), ("empty", "z", 3)):
        known.column(name, owner, width)
    known.load_state_dict(state)
    later.load_state_dict(state)  # before anybody has asked for a column
    for name, owner, width in (("a", "x", 2), ("b", "y", 0), ("empty", "z", 3)):
        later.column(name, owner, width)
    for loaded in (known, later):
        assert plain(loaded.state_dict()) == plain(table.state_dict())
    known.column("a", "x", 2).put(2, (0, 0))
    known.load_state_dict(state)  # a rollback
    known.gather()
    assert plain(known.state_dict()) == plain(table.state_dict())
    known.load_state_dict(None)
    assert all(not column.values for column in known.columns.values())


def test_a_checkpoint_with_another_column_is_refused():
    table, other, late = PromptTable(), PromptTable(), PromptTable()
    table.column("a", "x", 2)
    other.column("a", "x", 3)
    late.load_state_dict(table.state_dict())
    said = "column 'a' is of x with width 2, this run's of x with width 3"
    with pytest.raises(ValueError, match=said):
        other.load_state_dict(table.state_dict())
    with pytest.raises(ValueError, match=said):
        late.column("a", "x", 3)


def problems():
    """Eight problems, two rollouts in each epoch."""
    return data(source=sums(8), prompts_per_rollout=4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("whole")
    return Run(folder, 5, module(rewards=rewards()), problems())


@pytest.mark.slow
def test_a_run_counts_the_visits_of_each_problem(whole):
    state = plain(whole.module.prompt_table.state_dict())
    assert state["visits/count"]["rows"] == [*range(8)]
    visits = [count for count, _ in state["visits/count"]["values"]]
    assert sorted(visits) == [2] * 4 + [3] * 4
    last = {2: {"2/1", "3/1"}, 3: {"4/2"}}
    texts = zip(visits, state["visits/last"]["values"], strict=True)
    assert all(text in last[count] for count, text in texts)
    assert whole.module.prompt_table.visit is None


@pytest.mark.parametrize("rollout", [*(pytest.param(n, marks=pytest.mark.full) for n in (1, 2)), 4])
def test_a_resumed_run_has_the_same_table(whole, tmp_path, rollout):
    """Rollouts 2 and 4 end an epoch."""
    path = at(whole.folder / "checkpoints", rollout)
    again = Run(tmp_path, 5, module(rewards=rewards()), problems(), ckpt_path=path)
    tables = [plain(run.module.prompt_table.state_dict()) for run in (whole, again)]
    assert tables[0] == tables[1]
    one, other = whole.state(), again.state()
    assert not [name for name, value in one.items() if not torch.equal(value, other[name])]


def test_runs_without_a_column_have_no_table_in_their_checkpoints(tmp_path):
    run = Run(tmp_path, 1, module(), problems())
    assert "prompt_table" not in torch.load(at(run.folder / "checkpoints", 1), weights_only=True)


@pytest.mark.filterwarnings("ignore:CollapseGuard, rollout")
def test_a_rollback_takes_the_snapshots_table(tmp_path):
    """A visit that is undone has not been: the problems have fewer than the rollouts made."""
    always = {"metric": "rollout/length", "side": "below", "bound": 1e3, "factor": 1e6}
    guard = CollapseGuard(
        action="rollback", baseline=1, snapshot_every=1, max_actions=1,
        detectors={"long": {**always, "window": 1, "release": 0}},
    )  # fmt: skip
    run = Run(tmp_path, 4, module(rewards=rewards()), problems(), guard)
    (said,) = run.said("rollback")
    visits = [n for n, _ in plain(run.module.prompt_table.state_dict())["visits/count"]["values"]]
    assert sum(visits) < 4 * 4, said


def written_by_two(rank: int, folder: Path) -> None:
    table = PromptTable()
    column = table.column("a", "x")
    column.put(10 + rank, rank + 0.5)
    table.gather()
    assert column.numbers([10, 11], [-1]).tolist() == [[0.5], [1.5]]
    column.put(4, 1.0)  # on both
    with pytest.raises(ValueError, match="problem 4 was written by two data ranks"):
        table.gather()


@pytest.mark.slow
def test_every_data_rank_ends_with_the_same_table(tmp_path):
    on_two_processes(written_by_two, tmp_path)


ARGUMENTS = [
    *DISTRIBUTED, "--trainer.max_epochs=2", "--trainer.limit_val_batches=0",
    "--model.rewards=" + json.dumps({"visits": {"head": "test_prompt_table.Visits"}}),
    saving(every=1, keep=None),
]  # fmt: skip


@pytest.mark.full  # the test above; test_rubric_runs.py has a run's table under DDP
def test_two_processes_are_one(tmp_path):
    """Data-parallel, sharded and tensor-parallel; the data rank of a problem changes nothing."""
    launch(tmp_path, {"one": ARGUMENTS})
    kinds = ("ddp", "fsdp2", "tp")
    launch(tmp_path, {kind: [*ARGUMENTS, *on(kind, 2)] for kind in kinds}, forks=2)
    source = at(tmp_path / "fsdp2" / "version_0" / "checkpoints", 2)
    given = {"from shards": [*ARGUMENTS, *on("fsdp2", 1), f"--ckpt_path={source}"]}
    launch(tmp_path, given)
    file = at(tmp_path / "one" / "version_0" / "checkpoints", 4)
    expected = plain(torch.load(file, weights_only=True)["prompt_table"])
    assert len(expected["visits/count"]["rows"]) > 16
    for name in (*kinds, "from shards"):
        path = at(tmp_path / name / "version_0" / "checkpoints", 4)
        assert plain(read_rest(path)["prompt_table"]) == expected, name
