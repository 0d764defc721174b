"""What preflight says about memory: against real tensors, and before any weights are read."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.command_line import base
from rlif_lightning import ClusterVote, KLCov, LoRA, MuonAdamW, Policy, RLIFModule, cli
from rlif_lightning.evaluation.memory_need import held_by, sizes_of
from rlif_lightning.evaluation.preflight_memory import ROWS, Need
from rlif_lightning.learning.muon import mark_embeddings
from rlif_lightning.learning.objective_base import ReferenceKL
from rlif_lightning.learning.optimizer import build_optimizer
from rlif_lightning.model.cpu_memory import available_bytes
from rlif_lightning.model.memory_counts import Line, Shape, fullest
from rlif_lightning.model.packing import pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Completions

OPTIMIZERS = {
    "AdamW": partial(torch.optim.AdamW, lr=1e-6),
    "amsgrad": partial(torch.optim.AdamW, lr=1e-6, amsgrad=True),
    "SGD": partial(torch.optim.SGD, lr=1e-6),
    "momentum": partial(torch.optim.SGD, lr=1e-6, momentum=0.9),
    "Muon": partial(MuonAdamW, lr=1e-6),
}


def size(tensors: list[Tensor]) -> int:
    found = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(found.values())


@pytest.mark.parametrize("lora", [None, LoRA(4), LoRA(4, options={"use_dora": True})])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_held_is_counted_to_the_byte_before_it_is_there(optimizer, lora):
    policy = Policy("rlif-arithmetic", lora=lora)
    module = RLIFModule(policy, {"vote": ClusterVote()}, optimizer=OPTIMIZERS[optimizer])
    held, shape = held_by(module)
    real = PolicyModel(policy)
    mark_embeddings(real.causal_lm)
    trained = [each for each in real.parameters() if each.requires_grad]
    for each in trained:
        each.grad = torch.ones_like(each)
    made = build_optimizer(OPTIMIZERS[optimizer], trained)
    made.step()
    states = [each for entry in made.state.values() for each in entry.values()]
    assert held.weights == size([each.data for each in real.parameters()])
    assert held.trained == size([each.grad for each in trained])
    assert held.moments == size(
        [each for each in states if isinstance(each, Tensor) and each.dim()]
    )
    assert held.frozen == 0
    assert shape == Shape(128, 384, 2, 4, 4, 32, 121, biases=False)


def test_a_reference_is_counted_where_one_is_loaded():
    def frozen(lora):
        objective = KLCov(reference_kl=ReferenceKL(weight=0.1))
        policy = Policy("rlif-arithmetic", lora=lora)
        return held_by(RLIFModule(policy, {"vote": ClusterVote()}, objective=objective))[0].frozen

    # 121 * 128 and 128, and of both layers 4 * 128**2 + 3 * 128 * 384 + 2 * 128.
    assert frozen(None) == 4 * 442_112
    assert frozen(LoRA(4)) == 0  # the policy without its adapters


def test_the_largest_micro_batch_by_hand():
    """A group of 4 completions of 11 tokens after a prompt of 10 has 10 + 4 * 10 = 50 tokens."""
    assert fullest(100, 10, 11, 4, groups=8) == Line(10, 8, 11, 2)
    assert fullest(120, 10, 11, 4, groups=8) == Line(10, 9, 11, 3)  # 20 more: a prompt and one
    assert fullest(119, 10, 11, 4, groups=8) == Line(10, 8, 11, 2)
    assert fullest(45, 10, 11, 4, groups=8) == Line(10, 3, 11, 1)
    assert fullest(5, 10, 11, 4, groups=8) == Line(10, 1, 11, 1)  # one does not fit, and is run
    assert fullest(10**6, 10, 11, 4, groups=8) == Line(10, 32, 11, 8)


def test_the_room_of_observations_counts():
    split = SimpleNamespace(token_ids=[[1] * 10])
    run = RLIFModule("rlif-arithmetic", {"vote": ClusterVote()}, group_size=4)
    sizes = []
    for environment in (None, SimpleNamespace(max_observation_tokens=24)):
        data = SimpleNamespace(
            split=lambda name: split, prompts_per_rollout=2, environment=environment
        )
        sizes.append(sizes_of(run, data, 1)[1].length)
    assert sizes[1] == sizes[0] + 24


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 300),
    st.integers(1, 20),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_no_micro_batch_is_larger(budget, prompt, length, group, groups):
    ids = torch.ones(group * groups, length, dtype=torch.int64)
    prompts = [torch.ones(prompt, dtype=torch.int64)] * groups
    made = pack(Completions(prompts, ids, ids.bool(), group), budget)
    assert (
        max(len(each.input_ids) for each in made)
        <= fullest(budget, prompt, length, group, groups).tokens
    )


def need(update: int, rollout: int, free: int | None, **parts: int) -> tuple[str, str]:
    known = dict.fromkeys(ROWS, 0) | parts | {"update": update, "rollout": rollout}
    return Need(known, free).verdict()


MIB = 2**20


@pytest.mark.parametrize(
    ("given", "verdict", "words"),
    [
        ((89 * MIB, 10 * MIB, 100 * MIB), "good", "the update needs 89.0 MiB of 100.0 MiB"),
        ((95 * MIB, 10 * MIB, 100 * MIB), "caution", "needs 95.0 MiB"),
        ((101 * MIB, 10 * MIB, 100 * MIB), "poor", "needs 101.0 MiB"),
        ((10 * MIB, 101 * MIB, 100 * MIB), "poor", "the rollout needs 101.0 MiB"),
        ((10, 11, None), "caution", "is not known"),
    ],
)
def test_verdicts(given, verdict, words):
    found, why = need(*given)
    assert found == verdict
    assert words in why


def test_the_remedy_is_that_of_the_largest_part():
    assert "gradient_checkpointing" in need(9, 1, 5, activations=8)[1]
    assert "fsdp2.yaml" in need(9, 1, 5, moments=8)[1]
    assert "max_rows" in need(1, 9, 5, cache=8)[1]


def test_the_free_memory_of_this_machine():
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024  # the first line is MemTotal
    assert 0 < available_bytes() <= total


def preflight(folder, *arguments: str) -> None:
    given = base("--compare", "limit_train")
    cli.main(
        ["preflight", *given, f"--trainer.default_root_dir={folder}", "--prompts=4", *arguments]
    )


def test_it_is_said_before_any_weights_are_read(tmp_path, tiny_models, capsys):
    """A folder without weights ends the run; the need was printed before."""
    name = tmp_path / "no_weights"
    name.mkdir()
    for path in tiny_models["qwen2"].iterdir():
        if not path.name.endswith(".safetensors"):
            (name / path.name).write_bytes(path.read_bytes())
    with pytest.raises(SystemExit):
        preflight(tmp_path, f"--model.policy.name={name}")
    printed = capsys.readouterr()
    assert "Memory of one process" in printed.out
    assert "memory: the update needs" in printed.out
    assert "neither a model folder nor" in " ".join(printed.err.split())


def test_an_architecture_without_a_shape_gets_a_lower_bound(tmp_path, tiny_models, capsys):
    preflight(tmp_path, f"--model.policy.name={tiny_models['gpt2']}")
    printed = " ".join(capsys.readouterr().out.split())
    assert "the update needs at least" in printed
    assert "activations, logits, keys and values of this architecture are not counted" in printed
    found = json.loads((tmp_path / "version_0" / "preflight.json").read_text())
    bytes_of = found["memory_bytes"]
    assert bytes_of["update"] == 4 * bytes_of["weights"]  # gradients, and AdamW's two moments


def test_what_is_printed_fits_80_columns(tmp_path, capsys):
    preflight(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if not line.startswith("figures, and")) <= 80
    assert not [line for line in lines if "…" in line]
