"""Evaluation metrics: pass@k against its closed form and by counting subsets, means over batches,
and entropy.
"""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.files import CALLBACKS, LIBRARY
from harness.forked import on_two_processes
from harness.rollouts import handmade
from rlif_lightning.evaluation.evaluator import Evaluation, Evaluator
from rlif_lightning.evaluation.metrics import (
    AnswerDiversity,
    Labels,
    MajorityAtK,
    Mean,
    PassAtK,
    TokenEntropy,
    pass_at_k,
)
from rlif_lightning.processes.collectives import all_process_means
from rlif_lightning.records import Prompts


@given(st.integers(1, 40), st.data())
def test_pass_at_k_is_the_closed_form(num_samples, data):
    k = data.draw(st.integers(1, num_samples))
    correct = data.draw(st.lists(st.integers(0, num_samples), min_size=1, max_size=5))
    expected = [1 - math.comb(num_samples - c, k) / math.comb(num_samples, k) for c in correct]
    assert pass_at_k(torch.tensor(correct), num_samples, k).tolist() == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "verdicts", [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 1], [1, 1, 1, 1, 1]]
)
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(verdicts, k):
    subsets = list(combinations(verdicts, k))
    share = sum(map(any, subsets)) / len(subsets)
    assert float(pass_at_k(torch.tensor(sum(verdicts)), 5, k)) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_samples(k):
    with pytest.raises(ValueError, match=rf"k={k} must lie in \[1, 4\]"):
        pass_at_k(torch.tensor([1]), 4, k)


def test_pass_at_k_is_a_mean_over_problems_of_all_batches():
    metric = PassAtK(2)
    metric.update(torch.tensor([[True, False, False], [False, False, False]]))
    metric.update(torch.tensor([[True, True, True]]))
    assert float(metric.compute()) == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_majority_at_k():
    metric = MajorityAtK()
    metric.update(torch.tensor([True, False, True]))
    metric.update(torch.tensor([False]))
    assert float(metric.compute()) == 0.5


def test_answer_diversity_counts_distinct_answers():
    metric = AnswerDiversity()
    metric.update([[0, 1, 0, None], [None, None, None, None]])
    metric.update([[0, 1, 2, 3]])
    assert float(metric.compute()) == pytest.approx((2 / 4 + 0 + 1) / 3)


def test_token_entropy_weighs_tokens_not_completions():
    metric = TokenEntropy()
    entropy = torch.tensor([[1.0, 2.0, 3.0], [6.0, math.nan, math.inf]])
    metric.update(entropy, torch.tensor([[True, True, True], [True, False, False]]))
    assert float(metric.compute()) == 3.0
    metric.update(torch.tensor([[8.0]]), torch.tensor([[True]]))
    assert float(metric.compute()) == 4.0


def test_a_metric_starts_anew_and_knows_nothing_before():
    metric = Mean()
    metric.update(torch.tensor([1.0, 2.0]))
    metric.update(torch.tensor([[6.0]]))
    assert float(metric.compute()) == 3.0
    metric.reset()
    metric.update(torch.tensor([5.0]))
    assert float(metric.compute()) == 5.0
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert math.isnan(float(metric.compute()))


@pytest.mark.parametrize(
    "metric", [PassAtK(1), MajorityAtK(), AnswerDiversity(), TokenEntropy(), Mean(), Labels()]
)
def test_every_state_is_concatenated_over_ranks(metric):
    assert {reduction.__name__ for reduction in metric._reductions.values()} == {"dim_zero_cat"}


def test_problems_come_in_the_order_of_the_data_set():
    metric = Mean(share=True)
    metric.update(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([7, 2]))
    metric.update(torch.tensor([[0.0, 0.0]]), torch.tensor([4]))
    assert metric.table().tolist() == [[2, 2, 2], [4, 0, 2], [7, 1, 2]]
    labels = Labels()
    labels.update(["hard", "größer"], torch.tensor([7, 2]))
    labels.update([""], torch.tensor([4]))
    assert labels.compute() == ["größer", "", "hard"]


TEXTS = [["3", "3.0", "5"], ["no", "idea", "7"], ["8", "9", "9"], ["2", "2", "2"], ["1", "4", "4"]]
GOLD, LEVELS = ["3", "7", "9", "2", "5"], ["easy", "hard", "hard", "easy", "größer"]


def evaluated(rows: list[list[int]]) -> dict:
    """The report on batches of these problems; statistics depend on the problem alone."""
    evaluator = Evaluator(Evaluation(samples=3, pass_at=[2], greedy=True, subset_column="level"))
    for batch in rows:
        texts = [text for row in batch for text in TEXTS[row]]
        rollout, greedy = (
            problems(batch, given, size) for given, size in ((texts, 3), (texts[::3], 1))
        )
        evaluator.update(rollout, "answer", greedy)
    return evaluator.compute(labelled=True).as_dict()


def problems(rows: list[int], texts: list[str], group_size: int):
    rollout = handmade(texts, group_size)
    entropy = torch.arange(group_size).repeat(len(rows)) + torch.tensor(rows).repeat_interleave(
        group_size
    )
    stats = rollout.stats.map(
        lambda values: torch.where(rollout.mask, entropy.float().unsqueeze(1), 0.0)
    )
    columns = {"answer": [GOLD[row] for row in rows], "level": [LEVELS[row] for row in rows]}
    prompts = Prompts(
        [torch.tensor([1])] * len(rows), ["q"] * len(rows), columns, torch.tensor(rows)
    )
    mask = torch.zeros_like(rollout.mask)
    mask[:, :2] = True
    ended = entropy % 3 == 0
    return dataclasses.replace(rollout, prompts=prompts, stats=stats, mask=mask, ended=ended)


@pytest.mark.slow
def test_two_processes_report_what_one_does(tmp_path):
    """Through torchmetrics' own synchronisation over gloo, with different numbers of problems and
    label bytes.
    """
    on_two_processes(run_rank, tmp_path)
    whole = evaluated([[0, 1, 2], [3, 4]])
    assert whole["problems"] == 5
    assert {label: subset["problems"] for label, subset in whole["subsets"].items()} == {
        "easy": 2,
        "größer": 1,
        "hard": 2,
    }
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == json.loads(json.dumps(whole))


def run_rank(rank: int, folder: Path) -> None:
    report = evaluated([[0, 2], [4]] if rank == 0 else [[1], [3]])
    (folder / f"{rank}.json").write_text(json.dumps(report))


def test_figures_of_two_processes_are_averaged_by_name_and_never_mixed_up(tmp_path):
    on_two_processes(average_on_rank, tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["means"] == {"a": 2.0, "b": 0.5}
        own, other = ("vote", "gold") if rank == 0 else ("gold", "vote")
        assert own in found["error"]
        assert other not in found["error"]
    assert all_process_means({"a": 3}, torch.device("cpu"))["a"] == 3.0  # one process alone


def test_no_figure_is_a_message_of_its_own():
    alone = [path.name for path in [*LIBRARY, *CALLBACKS] if "sync_dist=True" in path.read_text()]
    assert alone == ["quiet.py"]  # Lightning's advice to do so is silenced there


def average_on_rank(rank: int, folder: Path) -> None:
    cpu = torch.device("cpu")
    means = all_process_means({"a": torch.tensor(1.0 + 2 * rank), "b": rank}, cpu)
    found: dict[str, object] = {"means": {name: float(value) for name, value in means.items()}}
    try:
        all_process_means({"a": 1.0, "gold" if rank else "vote": 2.0}, cpu)
    except RuntimeError as error:
        found["error"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(found))
