"""HFExporter: what it writes loads by transformers' own classes and gives the trained policy's
logits, bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from callbacks import HFExporter
from callbacks.hf_exporter import write_model
from harness.models import EACH_ARCHITECTURE
from harness.runs import FEW, ONE, TINY, fit
from rlif_lightning import cli
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel

TEXT = "3+4+5="
LORA = '--model.policy.lora={"rank": 4, "alpha": 8}'
EVALUATE = ["--trainer.check_val_every_n_epoch=1", "--trainer.max_epochs=2"]


def export(run_folder: Path, /, *arguments: str, **settings) -> cli.RLIFCLI:
    callback = json.dumps({"class_path": "HFExporter", "init_args": settings})
    return fit(run_folder, *FEW, *ONE, f"--trainer.callbacks+={callback}", *arguments)


@torch.no_grad()
def trained_logits(policy: PolicyModel) -> Tensor:
    ids = policy.tokenizer(TEXT, return_tensors="pt").input_ids
    return policy.model.eval()(ids).logits


@torch.no_grad()
def loaded_logits(folder: Path, dtype: str = "auto") -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.eval()(tokenizer(TEXT, return_tensors="pt").input_ids).logits


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[cli.RLIFCLI, Path]:
    """A run with an export at its end, and the exported folder."""
    folder = tmp_path_factory.mktemp("exported")
    return export(folder), folder / "version_0" / "export" / "last"


@pytest.mark.slow
def test_the_last_policy_loads_with_identical_logits(exported):
    run, folder = exported
    assert torch.equal(loaded_logits(folder), trained_logits(run.model.policy))
    start = trained_logits(PolicyModel(Policy("rlif-arithmetic")))
    assert not torch.equal(loaded_logits(folder), start)  # it was trained
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer_config.json",
    } <= names
    assert (
        GenerationConfig.from_pretrained(folder).eos_token_id
        == run.model.policy.model.generation_config.eos_token_id
    )
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_an_exported_folder_is_a_policy_to_go_on_with(exported, tmp_path):
    again = fit(tmp_path, *TINY, *ONE, f"--model.policy.name={exported[1]}")
    assert again.trainer.global_step == 4


@pytest.mark.slow
@pytest.mark.parametrize("mode", [pytest.param("min", marks=pytest.mark.full), "max"])
def test_best_is_the_policy_of_the_best_evaluation(tmp_path, mode):
    """Entropy falls in both epochs: `min` keeps the second policy, `max` the first."""
    run = export(tmp_path, *EVALUATE, monitor="val/entropy", mode=mode)
    last = loaded_logits(tmp_path / "version_0" / "export" / "last")
    best = loaded_logits(tmp_path / "version_0" / "export" / "best")
    assert torch.equal(last, trained_logits(run.model.policy))
    assert torch.equal(best, last) == (mode == "min")
    exporter = next(c for c in run.trainer.callbacks if isinstance(c, HFExporter))
    assert exporter.state_dict()["best"] is not None


def test_the_best_value_goes_on():
    first, again = (HFExporter(monitor="val/entropy", mode="max") for _ in range(2))
    first.best = 2.0
    again.load_state_dict(first.state_dict())
    assert not again.is_better(1.0)


# Every run logs into a new folder, so Lightning finds another folder of checkpoints than the one it
# resumes from.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning")
def test_a_resumed_run_remembers_the_best(tmp_path):
    shared = str(tmp_path / "shared")
    settings = {"folder": shared, "monitor": "val/entropy", "mode": "max"}
    export(tmp_path / "run", "--trainer.check_val_every_n_epoch=1", **settings)
    best = loaded_logits(Path(shared) / "best")
    export(tmp_path / "run", *EVALUATE, "--ckpt_path=auto", **settings)
    assert torch.equal(loaded_logits(Path(shared) / "best"), best)
    assert not torch.equal(loaded_logits(Path(shared) / "last"), best)


def test_a_run_from_a_checkpoint_of_another_one_has_a_best_of_its_own(tmp_path):
    """Entropy falls, so that the other run's best stays above all that this one measures."""
    settings = {"monitor": "val/entropy", "mode": "max"}
    export(tmp_path / "run", EVALUATE[0], **settings)
    [saved] = (tmp_path / "run").rglob("rollout=*.ckpt")
    export(tmp_path / "again", *EVALUATE, f"--ckpt_path={saved}", **settings)
    assert (tmp_path / "again" / "version_0" / "export" / "best").is_dir()


@pytest.mark.slow
def test_lora_is_written_as_adapters_or_merged(tmp_path):
    pytest.importorskip("peft")
    adapters = export(tmp_path / "adapters", LORA, "--model.optimizer.lr=0.01")
    folder = tmp_path / "adapters" / "version_0" / "export" / "last"
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert not (folder / "model.safetensors").exists()
    expected = trained_logits(adapters.model.policy)
    torch.testing.assert_close(loaded_logits(folder), expected, rtol=0, atol=1e-5)
    assert (expected - trained_logits(PolicyModel(Policy("rlif-arithmetic")))).abs().max() > 0.01
    merged = export(tmp_path / "merged", LORA, "--model.optimizer.lr=0.01", merge_lora=True)
    folder = tmp_path / "merged" / "version_0" / "export" / "last"
    assert not (folder / "adapter_config.json").exists()
    torch.testing.assert_close(loaded_logits(folder), expected, rtol=0, atol=1e-4)
    assert torch.equal(
        trained_logits(merged.model.policy), expected
    )  # merging left the policy alone


def test_dtype_is_that_of_the_weights_and_of_the_config(tmp_path):
    run = export(tmp_path, dtype="bfloat16")
    folder = tmp_path / "version_0" / "export" / "last"
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for name, weight in run.model.policy.model.named_parameters():
        assert torch.equal(model.get_parameter(name), weight.bfloat16())


@pytest.mark.parametrize("architecture", EACH_ARCHITECTURE)
def test_every_architecture_comes_back(tmp_path, tiny_models, architecture):
    policy = PolicyModel(Policy(str(tiny_models[architecture])))
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.01)
    weights = {
        name: weight.clone() for name, weight in policy.model.state_dict().items()
    }  # as gathered: no sharing
    write_model(policy, weights, tmp_path / "model")
    assert torch.equal(loaded_logits(tmp_path / "model"), trained_logits(policy))


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    policy = PolicyModel(Policy("rlif-arithmetic"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stale.txt").touch()
    (tmp_path / ".model.unfinished").mkdir()
    (tmp_path / ".model.unfinished" / "half.txt").touch()
    write_model(policy, policy.model.state_dict(), tmp_path / "model")
    assert not list(tmp_path.rglob("stale.txt")) + list(tmp_path.rglob("half.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with pytest.raises(AttributeError):  # a write that fails leaves the folder that is there
        write_model(policy, {"x": None}, tmp_path / "model")  # pyright: ignore
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_what_a_killed_process_moved_away_is_in_nobodys_way(tmp_path):
    policy = PolicyModel(Policy("rlif-arithmetic"))
    for name in ("model", ".model.old"):  # it was killed while it removed the former folder
        (tmp_path / name).mkdir()
        (tmp_path / name / "stale.txt").touch()
    write_model(policy, policy.model.state_dict(), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / "stale.txt").exists()


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        (
            {"monitor": "val/entropy"},
            ["--trainer.limit_val_batches=0"],
            "limit_val_batches=0 makes none",
        ),
        ({"merge_lora": True}, [], "merge_lora=true, but model.policy.lora is null"),
        ({"monitor": "val/luck"}, EVALUATE, "monitor='val/luck' was not logged; known:"),
        ({"mode": "up"}, [], "mode='up' is unknown"),
        ({"dtype": "int8"}, [], "dtype='int8' is unknown"),
        ({"last": False}, [], "leaves nothing to export"),
    ],
)
def test_settings_without_an_effect_are_refused(tmp_path, capsys, settings, arguments, message):
    with pytest.raises(SystemExit):
        export(tmp_path, *arguments, **settings)
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_monitor_that_was_never_measured_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="training ended without an evaluation"):
        export(tmp_path, monitor="val/entropy")
    assert (tmp_path / "version_0" / "export" / "last" / "model.safetensors").exists()
