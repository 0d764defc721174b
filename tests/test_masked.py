"""Masked reductions, alone and over two real processes that hold uneven shares of the rows."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import restatement
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.forked import on_two_processes
from rlif_lightning.learning.advantages import gdpo
from rlif_lightning.learning.loss_inputs import LossInputs
from rlif_lightning.learning.losses import aggregation_weights, token_covariance
from rlif_lightning.learning.objectives import ClipCov, KLCov
from rlif_lightning.masked import masked_max, masked_mean, masked_std, masked_sum
from rlif_lightning.processes.collectives import (
    all_process_attempt,
    all_process_objects,
    all_process_sum,
    all_rank_distinct,
    all_rank_max,
    all_rank_mean_std,
    all_rank_objects,
    all_rank_sum,
    all_rank_top_fraction,
    all_rank_upper_quantile,
    broadcast_from_first,
    is_distributed,
    is_first_process,
)
from rlif_lightning.processes.percentiles import all_rank_percentiles
from rlif_lightning.processes.ranks import (
    data_rank,
    num_data_ranks,
    share_completions,
    writes_completions,
)

VALUES = torch.tensor([[1.0, 2.0, 9.0], [torch.nan, 4.0, torch.inf], [7.0, torch.nan, -torch.inf]])
PERCENTILES = (0, 10, 37.5, 50, 90, 99.9, 100)
MASK = torch.tensor([[True, True, True], [False, True, False], [False, False, False]])


def test_masked_reductions_by_hand():
    assert masked_sum(VALUES, MASK) == 16
    assert masked_mean(VALUES, MASK) == 4
    assert masked_sum(VALUES, MASK, 1).tolist() == [12.0, 4.0, 0.0]
    assert masked_mean(VALUES, MASK, 1).tolist() == [4.0, 4.0, 0.0]
    assert masked_sum(VALUES, MASK, 0).tolist() == [1.0, 6.0, 9.0]
    assert masked_mean(VALUES, MASK, 0).tolist() == [1.0, 3.0, 9.0]


def test_masked_std_by_hand():
    """1, 2, 9: squared deviations 9 + 4 + 25; a set of one and an empty set have none."""
    torch.testing.assert_close(
        masked_std(VALUES, MASK, 1), torch.tensor([math.sqrt(19.0), 0.0, 0.0])
    )
    torch.testing.assert_close(
        masked_std(VALUES, MASK, 1, ddof=0), torch.tensor([math.sqrt(38 / 3), 0.0, 0.0])
    )


def test_padding_gets_no_gradient():
    leaf = VALUES.clone().requires_grad_()
    masked_mean(leaf, MASK).backward()
    assert torch.equal(leaf.grad, MASK * 0.25)


def test_alone_the_all_rank_sum_is_the_value():
    assert not is_distributed()
    assert torch.equal(all_rank_sum(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(st.floats(-100, 100), st.integers(0, 4)), min_size=1, max_size=12))
def test_weighted_mean_and_std_repeat_each_value_by_its_weight(pairs):
    values, weights = (torch.tensor(column) for column in zip(*pairs, strict=True))
    repeated = [
        float(value) for value, weight in zip(values, weights, strict=True) for _ in range(weight)
    ]
    mean, std = all_rank_mean_std(values.masked_fill(weights == 0, torch.nan), weights)
    assert mean.dtype == std.dtype == torch.float64
    assert float(mean) == pytest.approx(statistics.fmean(repeated) if repeated else 0.0, abs=1e-9)
    assert float(std) == pytest.approx(
        statistics.stdev(repeated) if len(repeated) > 1 else 0.0, abs=1e-9
    )


def test_top_fraction_counts():
    """floor(fraction * N) of the signed largest; below one token, one if it is positive; never
    outside the mask.
    """
    values = torch.tensor([5.0, -9.0, 3.0, 1.0, 99.0, -2.0])
    mask = torch.tensor([True, True, True, True, False, True])

    def marked(fraction: float, shift: float = 0.0) -> list[float]:
        return values[all_rank_top_fraction(values - shift, mask, fraction)].tolist()

    assert marked(0.0) == []
    assert marked(0.1) == [5.0]
    assert marked(0.1, shift=5.0) == []
    assert marked(0.2) == [5.0]
    assert marked(0.39) == [5.0]
    assert marked(0.4) == [5.0, 3.0]
    assert marked(0.2, shift=50.0) == [5.0]
    assert marked(1.0) == [5.0, -9.0, 3.0, 1.0, -2.0]
    assert not all_rank_top_fraction(values, torch.zeros_like(mask), 0.5).any()


def test_top_fraction_is_exact_where_the_product_rounds_down():
    """0.29 * 100 is 28.999999999999996 in floating point."""
    assert (
        all_rank_top_fraction(torch.arange(100.0), torch.ones(100, dtype=torch.bool), 0.29).sum()
        == 29
    )


def test_upper_quantile_by_hand():
    """Five valid values, 9 the largest: one in five may lie above 3, two in five above 2; the mask
    leaves 99 out.
    """
    values = torch.tensor([3.0, 1.0, 99.0, 9.0, -1.0, 2.0])
    mask = torch.tensor([True, True, False, True, True, True])
    for share, expected in ((0.0, 9.0), (0.19, 9.0), (0.2, 3.0), (0.4, 2.0), (0.8, -1.0)):
        assert float(all_rank_upper_quantile(values, mask, share)) == expected
    assert float(all_rank_upper_quantile(values, torch.zeros_like(mask), 0.5)) == 0


@given(st.lists(st.floats(-1024, 1024, width=32), min_size=1, max_size=40))
def test_percentiles_are_numpy_s(numbers):
    found = all_rank_percentiles(torch.tensor(numbers), PERCENTILES)
    expected = np.percentile(np.array(numbers), PERCENTILES)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_percentiles_of_nothing_are_not_numbers():
    assert all_rank_percentiles(torch.tensor([]), (10, 50)).isnan().tolist() == [True, True]


@pytest.mark.parametrize("fraction", [-0.1, 1.5, math.nan])
def test_top_fraction_refuses_per_cent(fraction):
    with pytest.raises(ValueError, match=f"fraction={fraction}"):
        all_rank_top_fraction(torch.ones(2), torch.ones(2, dtype=torch.bool), fraction)


def whole_update() -> dict[str, torch.Tensor]:
    """Ten completions (five groups of two) of up to seven tokens, two rewards."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([7, 1, 3, 2, 6, 4, 5, 5, 2, 7])
    return {
        "logprobs": -3 * torch.rand(10, 7, generator=generator),
        "advantages": torch.randn(10, 1, generator=generator).expand(10, 7).contiguous(),
        "mask": torch.arange(7) < lengths.unsqueeze(1),
        "completion_numbers": torch.arange(10),
        "rewards": torch.rand(
            5, 2, 2, generator=generator
        ),  # prompt first, so that rows and prompts split alike
        "lengths": lengths.view(5, 2),
    }


def share_of(prompts: slice, empty: bool = False) -> dict[str, torch.Tensor]:
    """The part of the update that belongs to some prompts; ``empty`` keeps the rows and clears
    their mask.
    """
    rows = slice(prompts.start * 2, prompts.stop * 2)
    whole = whole_update()
    share = {
        name: values[prompts if name in ("rewards", "lengths") else rows]
        for name, values in whole.items()
    }
    return share | {"mask": torch.zeros_like(share["mask"])} if empty else share


def statistics_of(share: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything that is a collective; row-wise results are this share's rows."""
    logprobs, advantages, mask = share["logprobs"], share["advantages"], share["mask"]
    update = LossInputs(logprobs, logprobs, advantages, mask, share["completion_numbers"])
    rewards = share["rewards"].movedim(0, 1)
    mean, std = all_rank_mean_std(logprobs, mask)
    results = {"sum": all_rank_sum(masked_sum(logprobs.double(), mask)), "mean": mean, "std": std}
    results["max"] = all_rank_max(masked_max(-logprobs, mask))
    for share_above in (0.0, 0.05, 0.5):
        results[f"quantile {share_above}"] = all_rank_upper_quantile(-logprobs, mask, share_above)
    results["percentiles"] = all_rank_percentiles(logprobs[mask], PERCENTILES)
    for aggregation in ("token_mean", "sequence_mean", "constant"):
        results[f"rows/{aggregation}"] = aggregation_weights(mask, aggregation, max_length=9)
    for batch_norm in ("none", "sample", "token"):
        results[f"rows/{batch_norm}"] = gdpo(
            rewards, torch.ones(2), batch_norm, lengths=share["lengths"]
        )
    for fraction in (0.001, 0.02, 0.3, 0.9):
        results[f"rows/top {fraction}"] = all_rank_top_fraction(logprobs + 1.5, mask, fraction)
        results[f"rows/kl_cov {fraction}"] = KLCov(fraction=fraction).select(update)
        results[f"rows/kl_cov top {fraction}"] = KLCov(fraction=fraction, pick="top").select(update)
        results[f"rows/clip_cov {fraction}"] = ClipCov(fraction=fraction, band=(0.05, 9.0)).select(
            update
        )
        held = replace(update, logprobs=update.logprobs.roll(1, 1))
        results[f"rows/clip_cov held {fraction}"] = ClipCov(
            fraction=fraction, band=(0.05, 9.0)
        ).select(held)
    return results | {"rows/covariance": token_covariance(logprobs, advantages, mask)}


def fail_on_second(rank: int) -> None:
    if rank:
        raise OSError("full")


def standing(value: torch.Tensor) -> tuple[int, int, bool, float]:
    """A process's place among the data ranks, and a value as the first process has it."""
    of_first = broadcast_from_first(value).item()
    return data_rank(), num_data_ranks(), writes_completions(), of_first


def run_rank(rank: int, folder: Path, shares: list[dict[str, torch.Tensor]]) -> None:
    """One of two processes."""
    assert is_distributed()
    mine = torch.tensor([1.0 + rank])
    assert all_rank_sum(mine).item() == 3
    assert all_rank_max(mine).item() == 2
    assert mine.item() == 1.0 + rank
    assert all_rank_distinct(["a", "b", "b"] if rank else ["a", "c"]) == 3
    assert is_first_process() == (rank == 0)
    assert all_process_attempt(lambda: rank) == rank
    with pytest.raises(
        OSError if rank else RuntimeError,
        match="^full$" if rank else "^process 1 failed: OSError: full$",
    ):
        all_process_attempt(lambda: fail_on_second(rank))
    torch.save(statistics_of(shares[rank]), folder / f"{rank}.pt")
    assert standing(mine) == (rank, 2, True, 1.0 + rank)
    share_completions(True)
    assert not is_distributed()
    assert standing(mine) == (0, 1, rank == 0, 1.0)
    assert (all_rank_sum(mine).item(), all_rank_max(mine).item(), all_process_sum(mine).item()) == (
        1 + rank,
        1 + rank,
        3,
    )
    assert (all_rank_objects(rank), all_process_objects(rank)) == ([rank], [0, 1])


def assert_two_processes_agree(
    folder, shares: list[dict[str, torch.Tensor]], whole: dict[str, torch.Tensor]
) -> None:
    on_two_processes(run_rank, folder, shares)
    parts = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    for name, expected in statistics_of(whole).items():
        if not name.startswith("rows/"):
            for part in parts:
                torch.testing.assert_close(part[name], expected, rtol=1e-12, atol=1e-12, msg=name)
            continue
        joined = torch.cat([part[name] for part in parts])
        if expected.dtype == torch.bool:
            assert torch.equal(joined, expected), name
            assert expected.any(), name
        else:
            torch.testing.assert_close(joined, expected, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 4], ids=["2 and 8 rows", "8 and 2 rows"])
def test_two_processes_with_uneven_shares_are_one(tmp_path, first):
    shares = [share_of(slice(0, first)), share_of(slice(first, 5))]
    assert_two_processes_agree(tmp_path, shares, whole_update())


@pytest.mark.slow
def test_rank_with_an_empty_mask_changes_nothing(tmp_path):
    """The second rank's rows all left the update; its rewards still count in the batch
    normalisation.
    """
    shares = [share_of(slice(0, 3)), share_of(slice(3, 5), empty=True)]
    whole = whole_update()
    whole["mask"] = torch.cat([share["mask"] for share in shares])
    assert_two_processes_agree(tmp_path, shares, whole)


@pytest.mark.slow
def test_rank_without_rows_changes_nothing(tmp_path):
    assert_two_processes_agree(
        tmp_path, [share_of(slice(0, 5)), share_of(slice(5, 5))], whole_update()
    )


def test_whole_update_matches_restatement():
    """What the two processes are compared with is itself right."""
    whole = whole_update()
    results = statistics_of(whole)
    covariance = restatement.covariance(whole["logprobs"], whole["advantages"], whole["mask"])
    torch.testing.assert_close(
        results["rows/covariance"], torch.tensor(covariance, dtype=torch.float64)
    )
    rewards = whole["rewards"].movedim(0, 1)
    for batch_norm in ("none", "sample", "token"):
        expected = restatement.gdpo(rewards, torch.ones(2), batch_norm, lengths=whole["lengths"])
        torch.testing.assert_close(results[f"rows/{batch_norm}"], expected, atol=1e-5, rtol=1e-5)
