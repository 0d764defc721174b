"""Batches: each row once, alike for every number of processes, and going on where a checkpoint
stopped.
"""

from __future__ import annotations

import lightning
import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from rlif_lightning.data.loaders import EncodedSplit, TrainLoader, ValidationLoader
from rlif_lightning.records import Prompts

# Lightning 2.6 builds torch's deprecated LeafSpec whenever it sets up a loader.
lightning_leaf_spec = pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")


def no_encoding(texts: list[str]) -> list[np.ndarray]:
    raise AssertionError("kept token ids are not made again")


def encoded(rows: list[int]) -> EncodedSplit:
    """Row r has prompt "r", level -r, and r + 1 tokens of id r."""
    size = max(rows) + 1
    dataset = Dataset.from_dict(
        {"question": [str(row) for row in range(size)], "level": [-row for row in range(size)]}
    )
    ids = [np.full(row + 1, row, dtype=np.int32) for row in rows]
    return EncodedSplit(
        dataset, np.array(rows), ids, lambda row: f"<{row['question']}>", no_encoding
    )


def indices(loader) -> list[list[int]]:
    return [batch.index.tolist() for batch in loader]


def test_a_batch_carries_the_rows_it_names():
    batch = encoded([1, 3, 4]).batch([2, 0])
    assert isinstance(batch, Prompts)
    assert batch.index.tolist() == [4, 1]
    assert batch.texts == ["<4>", "<1>"]
    assert batch.columns == {"question": ["4", "1"], "level": [-4, -1]}
    assert [ids.tolist() for ids in batch.token_ids] == [[4] * 5, [1, 1]]
    assert {ids.dtype for ids in [*batch.token_ids, batch.index]} == {torch.int64}


def test_draws_ahead_over_an_epochs_end_shuffle_each_epoch_once(monkeypatch):
    """Two epochs of two batches, with two batches looked at ahead of each."""
    made, original = [], np.random.default_rng
    counted = lambda seeds: made.append(tuple(seeds)) or original(seeds)  # noqa: E731
    plain = [indices(each) for each in [TrainLoader(encoded(list(range(9))), 4, 0, 1, 0)] * 3]
    monkeypatch.setattr(np.random, "default_rng", counted)
    loader, seen, ahead = TrainLoader(encoded(list(range(9))), 4, 0, 1, 0), [], []
    for _ in range(2):
        for batch in loader:
            seen.append(batch.index.tolist())
            ahead.append([loader.upcoming(k).index.tolist() for k in (2, 1, 0)])
    order = [batch for epoch in plain for batch in epoch]
    assert seen == order[:4]
    assert ahead == [[order[k + 2], order[k + 1], order[k]] for k in range(4)]
    assert made == [(0, 0), (0, 1), (0, 2)]


def test_an_epoch_is_shuffled_drops_the_rest_and_differs_from_the_next():
    loader = TrainLoader(encoded(list(range(11))), 4, seed=0, num_replicas=1, rank=0)
    first, second = indices(loader), indices(loader)
    assert len(loader) == len(first) == len(second) == 2
    for epoch in (first, second):
        drawn = [row for batch in epoch for row in batch]
        assert len(set(drawn)) == 8
        assert set(drawn) <= set(range(11))
    assert first != second
    assert first != [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (
        indices(TrainLoader(encoded(list(range(11))), 4, seed=1, num_replicas=1, rank=0)) != first
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(12, 30))
def test_processes_together_train_on_the_batch_of_one(processes, share, size):
    split, whole = encoded(list(range(size))), processes * share
    alone = indices(TrainLoader(split, whole, 5, 1, 0))
    ranks = [indices(TrainLoader(split, whole, 5, processes, rank)) for rank in range(processes)]
    for batch, *parts in zip(alone, *ranks, strict=True):
        assert [part[k] for k in range(share) for part in parts] == batch


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(4, 30))
def test_processes_together_validate_each_row_once(processes, share, size):
    split = encoded(list(range(size)))
    loaders = [
        ValidationLoader(split, processes * share, processes, rank) for rank in range(processes)
    ]
    ranks = [indices(loader) for loader in loaders]
    assert {len(loader) for loader in loaders} == {len(rank) for rank in ranks} == {len(ranks[0])}
    assert all(
        batch for rank in ranks for batch in rank
    )  # an empty batch would stop the other processes
    assert sorted(row for rank in ranks for batch in rank for row in batch) == list(range(size))


def test_validation_keeps_the_order_and_the_last_partial_batch():
    assert indices(ValidationLoader(encoded([0, 2, 3, 5, 6]), 2, 1, 0)) == [[0, 2], [3, 5], [6]]
    # One row is too few for two processes: it joins the batch before.
    assert indices(ValidationLoader(encoded([0, 2, 3, 5, 6]), 2, 2, 0)) == [[0], [3, 6]]
    assert indices(ValidationLoader(encoded([0, 2, 3, 5, 6]), 2, 2, 1)) == [[2], [5]]


@pytest.mark.parametrize("drawn", range(1, 7))
def test_the_state_goes_on_with_the_very_next_batch(drawn):
    def loader():
        return TrainLoader(encoded(list(range(9))), 3, seed=2, num_replicas=1, rank=0)

    uninterrupted = loader()
    expected = [batch for _ in range(4) for batch in indices(uninterrupted)]
    stopped = loader()
    for _ in range(drawn // 3):
        indices(stopped)
    iterator = iter(stopped)
    for _ in range(drawn % 3):
        next(iterator)
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    assert indices(resumed) + indices(resumed) == expected[drawn : drawn + 6]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "seed=1"),
        ({"rows": 7}, "num_prompts=7"),
    ],
)
def test_a_state_of_other_settings_is_refused(changed, message):
    def loader(rows=8, prompts_per_rollout=2, seed=0):
        return TrainLoader(encoded(list(range(rows))), prompts_per_rollout, seed, 1, 0)

    with pytest.raises(ValueError, match=message):
        loader(**changed).load_state_dict(loader().state_dict())


class Recorder(lightning.LightningModule):
    """Notes the rows of every batch; real parameters and a real trainer around it."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def training_step(self, batch, batch_idx):
        assert isinstance(batch, Prompts)
        self.seen.append(batch.index.tolist())
        return self.layer(batch.index[:1, None].float()).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Data(lightning.LightningDataModule):
    def train_dataloader(self):
        return TrainLoader(
            encoded(list(range(17))), 3, seed=0, num_replicas=1, rank=0
        )  # 5 batches an epoch


def fit(
    folder, steps: int, ckpt_path=None, every: int | None = None, **arguments
) -> list[list[int]]:
    """Train and answer the rows seen; checkpoints in the middle of an epoch (``every``) or none."""
    callbacks = (
        [ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)]
        if every
        else []
    )
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=callbacks,
        enable_checkpointing=bool(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    module = Recorder()
    trainer.fit(module, Data(), ckpt_path=ckpt_path, weights_only=False if ckpt_path else None)
    return module.seen


@lightning_leaf_spec
@pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists and is not empty"
)  # the run resumed lies there
@pytest.mark.parametrize(
    "stop", [2, 5, 7, 10]
)  # inside the first epoch, at its end, inside and at the end of the next
def test_a_resumed_run_sees_the_prompts_of_an_uninterrupted_one(tmp_path, stop):
    uninterrupted = fit(tmp_path, 13)
    assert len(uninterrupted) == 13
    before = fit(tmp_path, stop, every=stop)
    after = fit(tmp_path, 13, every=stop, ckpt_path=tmp_path / f"step={stop}.ckpt")
    assert before + after == uninterrupted


@lightning_leaf_spec
def test_an_epoch_cut_short_goes_on_where_it_was_cut(tmp_path):
    assert fit(tmp_path, 10, limit_train_batches=2) == fit(tmp_path, 10)
