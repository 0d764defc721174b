"""Two processes with half of each layer are one with the whole: real runs under gloo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from harness.architectures import save_tiny, tiny_config
from harness.launches import (
    BASE,
    CASES,
    HEADS,
    assert_same_runs,
    assert_same_weights,
    checkpoint,
    figures,
    launch,
    on,
    weights,
)
from rlif_lightning.model.loading import LoRA, Policy, load_pretrained
from rlif_lightning.parallel.tensor_parallel import split_policy
from rlif_lightning.parallel.tensor_parallel_layers import ColumnLinear

SAVING = {
    "class_path": "ModelCheckpoint",
    "init_args": {"every_n_train_steps": 4, "save_top_k": -1},
}
WRITER = {"class_path": "CompletionWriter", "init_args": {"every": 1, "show": ["tensorboard"]}}
EXPORTER = {"class_path": "HFExporter"}
WATCHED = [f"--trainer.callbacks+={json.dumps(each)}" for each in (SAVING, WRITER, EXPORTER)]

REWARDS = {
    "vote": HEADS["vote"],
    "certainty": {"head": {"class_path": "harness.uneven.UnevenHead"}, "weight": 0.5},
}
UNEVEN = [
    *CASES["method"],
    f"--model.rewards={json.dumps(REWARDS)}",
    "--model.engine.class_path=harness.uneven.UnevenEngine",
]


def small(folder: Path) -> list[str]:
    """A run of a random model: grouped heads; biases (Qwen2), norms of single heads (Qwen3)."""
    return [
        *BASE,
        f"--model.policy.name={folder}",
        "--model.sampling.max_new_tokens=8",
        "--trainer.limit_val_batches=1",
    ]


@pytest.fixture(scope="module")
def runs() -> dict[str, list[str]]:
    return {
        "method": [*BASE, *CASES["method"], *WATCHED],
        "uneven": [*BASE, *UNEVEN],
    }


@pytest.fixture(scope="module")
def alone(runs, tmp_path_factory) -> Path:
    """Every run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    launch(folder, runs)
    return folder


@pytest.fixture(scope="module")
def both(runs, tmp_path_factory) -> Path:
    """Every run in two."""
    folder = tmp_path_factory.mktemp("both")
    launch(folder, {name: [*arguments, *on("tp", 2)] for name, arguments in runs.items()}, forks=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["method", "uneven"])
def test_two_processes_are_one(alone, both, name):
    """Votes, GDPO over the batch, KL-Cov, a reference model, completions of different lengths,
    validation; and, uneven,
    processes of which the second would draw other tokens and score them otherwise."""
    assert [each["world_size"] for each in figures(both, name)] == [2, 2]
    assert_same_runs((both, name), (alone, name))


@pytest.mark.full  # test_a_split_policy_of_one_part_is_the_whole splits each kind
def test_biases_and_norms_of_heads_are_split(tiny_models, tmp_path):
    given = {
        "biases": [*small(tiny_models["qwen2"]), *CASES["checkpointing"]],
        "norms of heads": [*small(tiny_models["qwen3"]), *CASES["method"]],
    }
    one, two = tmp_path / "one", tmp_path / "two"
    launch(one, given)
    launch(two, {name: [*arguments, *on("tp", 2)] for name, arguments in given.items()}, forks=2)
    for name in given:
        assert [each["world_size"] for each in figures(two, name)] == [2, 2]
        assert_same_runs((two, name), (one, name))


@pytest.mark.slow
def test_each_process_holds_half_of_the_layers(both):
    whole = {
        name: value.numel()
        for name, value in weights(both, "method").items()
        if "lm_head" not in name
    }
    layers = sum(size for name, size in whole.items() if name.endswith("proj.weight"))
    rest = sum(whole.values()) - layers
    assert [each["held"] for each in figures(both, "method")] == [rest + layers // 2] * 2


def completions(path: Path) -> list[str]:
    return [json.loads(line)["completion"] for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_rows_are_written_once(alone, both):
    """Files of completions and of evaluations are those of one process, and no prompt is counted
    twice.
    """
    for pattern in ("completions*.jsonl", "evaluated/*.jsonl"):
        expected, found = (
            sorted((path / "method").glob(f"version_*/{pattern}")) for path in (alone, both)
        )
        assert [path.name for path in found] == [path.name for path in expected] != []
        for one, other in zip(found, expected, strict=True):
            texts = [
                [json.loads(line)["completion"] for line in path.read_text().splitlines()]
                for path in (one, other)
            ]
            assert texts[0] == texts[1]


@pytest.mark.slow
def test_the_export_is_an_ordinary_model(both):
    folder = next((both / "method").glob("version_*/export/last"))
    exported = load_pretrained(Policy(str(folder), dtype="float64"))
    assert_same_weights(weights(both, "method"), exported.state_dict())
    assert (exported.config.num_attention_heads, exported.config.intermediate_size) == (4, 384)


@pytest.mark.slow
def test_a_run_goes_on_from_every_kind_of_checkpoint(runs, alone, both, tmp_path):
    """Its own folder, one process's file; and what it saved goes on under FSDP2 in one process."""
    arguments = [*BASE, *CASES["method"]]
    split = [*arguments, *on("tp", 2)]
    own, file = (f"--ckpt_path={checkpoint(folder, 'method')}" for folder in (both, alone))
    launch(tmp_path / "both", {"own": [*split, own], "file": [*split, file]}, forks=2)
    launch(tmp_path / "one", {"folder": [*arguments, *on("fsdp2", 1), own]})
    for folder, name in (("both", "own"), ("both", "file"), ("one", "folder")):
        assert figures(tmp_path / folder, name)[0]["rollouts"] == 2
        expected = both if name == "own" else alone
        assert_same_weights(weights(tmp_path / folder, name), weights(expected, "method"))
    for name, value in weights(tmp_path / "both", "own").items():
        assert torch.equal(value, weights(both, "method")[name]), name


@pytest.mark.full  # test_prediction_files.py, with processes that have prompts of their own
def test_other_subcommands_see_each_prompt_once(tmp_path):
    looked, asked = ["preflight", *BASE[1:], "--prompts=3"], ["predict", *BASE[1:]]
    single = {"preflight": looked, "predict": asked}
    launch(tmp_path / "one", single)
    launch(
        tmp_path / "two",
        {name: [*arguments, *on("tp", 2)] for name, arguments in single.items()},
        forks=2,
    )
    for pattern in (
        "preflight/version_*/preflight.jsonl",
        "predict/version_*/predictions/completions-*.jsonl",
    ):
        expected, found = (sorted((tmp_path / folder).glob(pattern)) for folder in ("one", "two"))
        assert [path.name for path in found] == [path.name for path in expected]
        assert completions(found[0]) == completions(expected[0]) != []


@pytest.fixture
def group(tmp_path):
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("architecture", "processes", "message"),
    [
        (
            "gpt2",
            1,
            r"GPT2LMHeadModel has no plan to split layers; use --config"
            r" configs/strategy/fsdp2.yaml",
        ),
        (
            "llama",
            4,
            r"trainer.devices: 4 processes cannot share num_key_value_heads=2 of .*fsdp2.yaml",
        ),
    ],
)
def test_models_that_cannot_be_split_are_refused(
    tiny_models, group, monkeypatch, architecture, processes, message
):
    monkeypatch.setattr(dist, "get_world_size", lambda: processes)
    with pytest.raises(ValueError, match=message):
        split_policy(Policy(str(tiny_models[architecture])), torch.device("cpu"))


def test_lora_and_unknown_plans_are_refused(tiny_models, group, monkeypatch):
    policy = Policy(str(tiny_models["llama"]), lora=LoRA(rank=2))
    with pytest.raises(
        ValueError, match=r"model.policy.lora=.* is not supported under tensor parallelism; use"
    ):
        split_policy(policy, torch.device("cpu"))
    from transformers import LlamaConfig, Qwen3Config

    plan, other = (dict(kind.base_model_tp_plan or {}) for kind in (LlamaConfig, Qwen3Config))
    monkeypatch.setattr(
        LlamaConfig, "base_model_tp_plan", {**plan, "layers.*.mlp.gate": "moe_gate"}
    )
    with pytest.raises(
        ValueError, match=r"has entries of an unknown kind, moe_gate \(known: colwise, rowwise"
    ):
        split_policy(Policy(str(tiny_models["llama"])), torch.device("cpu"))
    norms = {name: kind for name, kind in other.items() if "norm" not in name}
    monkeypatch.setattr(Qwen3Config, "base_model_tp_plan", norms)
    with pytest.raises(ValueError, match=r"does not name layers.0.self_attn.q_norm.weight"):
        split_policy(Policy(str(tiny_models["qwen3"])), torch.device("cpu"))


def test_a_plan_that_names_no_layer_of_the_model_is_refused(group, tmp_path):
    policy = Policy(save_tiny(tiny_config("gemma3"), tmp_path))  # its language model is a part
    with pytest.raises(
        ValueError, match=r"plan of Gemma3ForConditionalGeneration names none of its layers.*fsdp2"
    ):
        split_policy(policy, torch.device("cpu"))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
def test_a_split_policy_of_one_part_is_the_whole(tiny_models, group, architecture):
    policy = Policy(str(tiny_models[architecture]), dtype="float64")
    split = split_policy(policy, torch.device("cpu")).causal_lm
    assert isinstance(split.base_model.layers[0].mlp.up_proj, ColumnLinear)
    for name, value in load_pretrained(policy).state_dict().items():
        assert torch.equal(split.state_dict()[name], value), name
