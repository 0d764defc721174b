"""Decoding on the twin: the CPU's tokens, a step that could be a CUDA graph, and what rows cost
that come and go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from device_twin.counting import first_difference, watched
from device_twin.workload import DEVICE
from harness.architectures import save_tiny, tiny_config
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts, Rollout
from rlif_lightning.rollout import generation
from rlif_lightning.rollout.generation import Generation
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling

TEXTS = ("1+2=", "123+345+678=", "7+7+7=", "9=", "12+34+56+78+9+1=", "3+4+5=")  # of several lengths
GROUP = 4
SAMPLINGS = {
    "plain": Sampling(max_new_tokens=24),
    "hot": Sampling(
        temperature=2.5, max_new_tokens=70, min_new_tokens=3
    ),  # beyond the rows' first room
    "stop strings": Sampling(temperature=2.5, max_new_tokens=24, stop=["7", "="]),
    "closed": Sampling(temperature=2.5, max_new_tokens=24, stop=["7", "="], train_stop=True),
    "cut": Sampling(temperature=2.0, max_new_tokens=12, top_k=5, top_p=0.9),
    "greedy": Sampling(temperature=0.0, max_new_tokens=12),
}


@pytest.fixture(scope="module")
def policies() -> dict[str, PolicyModel]:
    """The same policy on the host and on the device."""
    policies = {
        device: PolicyModel(Policy("rlif-arithmetic")).to(device) for device in ("cpu", "cuda")
    }
    for policy in policies.values():
        policy.eos_ids = [*policy.eos_ids, 20]  # so that rows leave at all times
    return policies


def prompts_of(policy: PolicyModel, device: str) -> Prompts:
    ids = [torch.tensor(policy.tokenizer(text)["input_ids"]) for text in TEXTS]
    return Prompts(ids, list(TEXTS), {}, torch.arange(len(TEXTS))).to(device)


def generate(policy: PolicyModel, device: str, sampling: Sampling, max_rows: int) -> Rollout:
    engine = NativeEngine(max_rows)
    engine.setup(policy, 3)
    return engine.generate(prompts_of(policy, device), GROUP, sampling, 0)


@pytest.mark.parametrize("name", SAMPLINGS)
# The mark: with five places rows wait, join and leave as well, in a fifth of the steps.
@pytest.mark.parametrize("max_rows", [pytest.param(1, marks=pytest.mark.full), 5, 512])
def test_completions_are_the_cpus(policies, monkeypatch, name, max_rows):
    """Places are padded, stay empty and are filled again; tokens are read late. Nobody sees it."""
    monkeypatch.setattr(generation, "ADMISSIONS", 2)  # rows wait until half of the places are free
    expected = generate(policies["cpu"], "cpu", SAMPLINGS[name], 512)
    found = generate(policies["cuda"], "cuda", SAMPLINGS[name], max_rows)
    assert len(set(expected.lengths.tolist())) > (name != "greedy") * 3
    assert torch.equal(found.completion_ids.cpu(), expected.completion_ids)
    assert torch.equal(found.mask.cpu(), expected.mask)
    assert torch.equal(found.ended.cpu(), expected.ended)
    assert found.texts == expected.texts
    for part in ("logprobs", "entropy", "self_certainty"):
        ours, theirs = getattr(found.stats, part), getattr(expected.stats, part)
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-4)
        assert not ours[~found.mask].any()


@pytest.mark.parametrize("kind", ["gemma2", "deepseek_v3"])
def test_windows_soft_caps_and_latent_heads_keep_to_their_row(kind, tmp_path):
    """Places of longer rows and prompts are taken again; values of another size than keys."""
    dense = {"first_k_dense_replace": 2} if kind == "deepseek_v3" else {}
    name = save_tiny(tiny_config(kind, **dense), tmp_path)
    sampling, rollouts = Sampling(max_new_tokens=20), []
    for device, max_rows in (("cpu", 512), ("cuda", 3)):
        policy = PolicyModel(Policy(name)).to(device)
        policy.eos_ids = list(range(2, 12))
        rollouts.append(generate(policy, device, sampling, max_rows))
    expected, found = rollouts
    assert len(set(expected.lengths.tolist())) > 3
    assert torch.equal(found.completion_ids.cpu(), expected.completion_ids)
    torch.testing.assert_close(
        found.stats.logprobs.cpu(), expected.stats.logprobs, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("mixed", [False, True])
def test_a_step_is_the_same_graph_while_its_bucket_is_the_same(policies, mixed):
    """Same operations, shapes and addresses, no wait, no upload: what ``torch.cuda.graph`` asks of
    it.
    """
    engine, policy = NativeEngine(16), policies["cuda"]
    engine.setup(policy, 3)
    recorded, buckets = [], []
    autocast = torch.autocast("cuda", torch.bfloat16, enabled=mixed, cache_enabled=False)
    with torch.no_grad(), autocast, engine.ready(DEVICE):
        drawing = Generation(engine, prompts_of(policy, "cuda"), GROUP, SAMPLINGS["plain"], 0)
        drawing.admit()
        for _ in range(12):
            drawing.plan()
            buckets.append(drawing.bucket)
            with watched(record=True) as watch:
                drawing.step()
            assert (watch.waits.total(), watch.uploads.total()) == (0, 0)
            recorded.append(watch)
            drawing.settle(drawing.tokens[: drawing.n].cpu())
        assert drawing.next_row > 16  # rows left, and others took their places
    compared = 0
    for number in range(2, len(recorded)):  # weights are cast in the first
        if buckets[number] == buckets[number - 1]:
            assert first_difference(recorded[number - 1], recorded[number]) is None
            compared += 1
    assert compared > 6


class Emulated:
    """A CUDA graph on the twin: operations are recorded, and repeated into the same tensors.

    The twin computes while it records, and CUDA does not: so the first replay does nothing.
    """

    made: ClassVar[list[Emulated]] = []

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0
        self.made.append(self)

    def replay(self) -> None:
        self.replays += 1
        for function, given, named, results in self.operations if self.replays > 1 else ():
            again = function(*given, **named)
            pairs = zip(tree_leaves(results), tree_leaves(again), strict=True)
            for old, new in pairs:
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@contextmanager
def recording(graph: Emulated, pool: object) -> Iterator[None]:
    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, given=(), named=None):
            results = function(*given, **(named or {}))
            graph.operations.append((function, given, named or {}, results))
            return results

    with Recorder():
        yield


@pytest.mark.parametrize("mixed", [pytest.param(False, marks=pytest.mark.full), True])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_graphs_draw_the_same_completions(policies, monkeypatch, name, mixed):
    """Rows leave and are admitted between replays; the host's state goes on without the steps."""
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Emulated)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(Emulated, "made", [])
    rollouts = []
    for graphs in (False, True):
        engine = NativeEngine(max_rows=9, cuda_graphs=graphs)
        engine.setup(policies["cuda"], 3)
        prompts = prompts_of(policies["cuda"], "cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=mixed, cache_enabled=False):
            rollouts.append(engine.generate(prompts, GROUP, SAMPLINGS[name], 0))
    expected, found = rollouts
    assert torch.equal(found.completion_ids, expected.completion_ids)
    assert torch.equal(found.ended, expected.ended)
    for part in ("logprobs", "entropy", "self_certainty"):
        assert torch.equal(getattr(found.stats, part), getattr(expected.stats, part))
    assert sum(graph.replays for graph in Emulated.made) > len(Emulated.made) > 1


def test_graphs_are_refused_where_steps_change(policies):
    engine = NativeEngine(cuda_graphs=True)
    engine.setup(policies["cpu"], 3)
    with pytest.raises(ValueError, match="cuda_graphs=true does not serve a policy on cpu"):
        engine.generate(prompts_of(policies["cpu"], "cpu"), GROUP, SAMPLINGS["plain"], 0)


def test_a_stop_string_costs_no_further_wait(policies):
    """One copy of all tokens a step, whatever is looked for in them."""
    counts = []
    for stop in ([], ["never"]):
        sampling = Sampling(max_new_tokens=16, min_new_tokens=16, stop=stop)
        with watched() as watch:
            generate(policies["cuda"], "cuda", sampling, 512)
        counts.append(watch.waits.total())
    assert counts[0] == counts[1]


def test_rows_that_come_and_go_cost_uploads_by_event_and_not_by_layer(policies):
    """A leave or an admission: counters, places, and what moves, each once for all layers."""
    sampling = Sampling(temperature=2.5, max_new_tokens=24)
    with watched() as watch:
        rollout = generate(policies["cuda"], "cuda", sampling, 5)
    rows = len(rollout.texts)
    assert watch.uploads.total() < 12 * rows
    assert watch.waits.total() <= rollout.lengths.sum()
