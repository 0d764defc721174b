"""Whole runs on the device through the real command line: saved, resumed, and the same as on the
CPU.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer

from callbacks.collapse_guard import CollapseGuard
from rlif_lightning import LoRA, cli
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel

pytestmark = pytest.mark.filterwarnings(
    "ignore:GPU available but not used"
)  # runs on the CPU to compare with
RECIPE = [  # reference model, KL-Cov, guard, two heads
    "--config=configs/quickstart.yaml",
    "--config=configs/stable.yaml",
    "--trainer.callbacks+=CollapseGuard",
    "--trainer.callbacks.action=adjust",
    "--compare=false",
    "--trainer.devices=1",
    "--trainer.limit_train_batches=2",
    "--trainer.val_check_interval=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.source.init_args.size=8",
    "--data.source.init_args.validation_size=4",
    "--data.prompts_per_rollout=4",
    "--data.group_size=4",
    "--model.sampling.max_new_tokens=16",
    "--model.update.updates_per_rollout=2",
    "--model.rewards.certainty.head=SelfCertainty",
]
# A step is 1e-4. Attention in other pieces rounds otherwise, and AdamW divides by small gradients.
ROUNDING = 1e-5
SAVING = {
    "class_path": "ModelCheckpoint",
    "init_args": {"every_n_train_steps": 2, "save_top_k": -1},
}


def fit(folder: Path, accelerator: str, *arguments: str) -> cli.RLIFCLI:
    where = [f"--trainer.accelerator={accelerator}", f"--trainer.default_root_dir={folder}"]
    return cli.main(["fit", *RECIPE, *where, *arguments])


def device_of(run: cli.RLIFCLI) -> str:
    return (
        run.trainer.strategy.root_device.type
    )  # the model went back to the CPU when the run ended


def weights(run: cli.RLIFCLI) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu() for name, value in run.model.policy.state_dict().items()}


def assert_near(left: cli.RLIFCLI, right: cli.RLIFCLI, tolerance: float = 0.0) -> None:
    others = weights(right)
    for name, value in weights(left).items():
        torch.testing.assert_close(
            value, others[name], rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


def metrics(folder: Path) -> list[dict[str, float]]:
    """Every logged row without its times."""
    with next(folder.rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    timed = ("time/", "per_second")
    return [
        {k: float(v) for k, v in row.items() if v and not any(word in k for word in timed)}
        for row in rows
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run on the device in float32, with a checkpoint after each rollout."""
    folder = tmp_path_factory.mktemp("whole")
    return fit(folder, "cuda", f"--trainer.callbacks+={json.dumps(SAVING)}"), folder


def test_a_float32_run_is_the_cpus(whole, tmp_path):
    run, folder = whole
    host = fit(tmp_path, "cpu")
    assert (device_of(run), device_of(host)) == ("cuda", "cpu")
    assert any(isinstance(callback, CollapseGuard) for callback in run.trainer.callbacks)
    assert_near(run, host, ROUNDING)
    ours, theirs = metrics(folder), metrics(tmp_path)
    assert len(ours) == len(theirs) >= 4
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5, nan_ok=True)
    assert any("val/accuracy" in row for row in ours)
    assert any(row.get("policy/reference_kl", 0.0) > 0 for row in ours)


@pytest.mark.filterwarnings(
    "ignore:The dirpath has changed"
)  # on purpose: resumed into another folder
@pytest.mark.parametrize("accelerator", ["cuda", "cpu"])
def test_a_checkpoint_of_the_device_is_resumed(whole, tmp_path, accelerator):
    run, folder = whole
    checkpoint = next(folder.rglob("*step=2.ckpt"))
    resumed = fit(
        tmp_path,
        accelerator,
        f"--trainer.callbacks+={json.dumps(SAVING)}",
        f"--ckpt_path={checkpoint}",
    )
    assert device_of(resumed) == accelerator
    assert (resumed.trainer.global_step, int(resumed.model.num_rollouts)) == (4, 2)
    assert_near(run, resumed, 0.0 if accelerator == "cuda" else ROUNDING)


def test_a_mixed_run_trains_saves_and_resumes(tmp_path):
    options = ["--trainer.precision=bf16-mixed", f"--trainer.callbacks+={json.dumps(SAVING)}"]
    run = fit(tmp_path / "whole", "cuda", *options)
    checkpoint = next((tmp_path / "whole").rglob("*step=2.ckpt"))
    assert {
        value.dtype for value in torch.load(checkpoint, weights_only=True)["state_dict"].values()
    } >= {torch.float32}
    resumed = fit(tmp_path / "resumed", "cuda", *options, f"--ckpt_path={checkpoint}")
    assert_near(run, resumed)
    [row, *_] = [row for row in metrics(tmp_path / "whole") if "policy/log_ratio" in row]
    assert math.isfinite(row["policy/grad_norm"])
    assert row["policy/sampler_gap"] > 0  # the two precisions differ from float32's


LORA = ['--model.policy.lora={"rank": 4, "alpha": 8}']
EAGER = ["--model.policy.attention=eager"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(LORA, id="lora", marks=pytest.mark.full),
        pytest.param(["--model.policy.gradient_checkpointing=true"], id="gradient checkpointing"),
        pytest.param(EAGER, id="eager", marks=pytest.mark.full),
    ],
)
def test_settings_of_the_policy_give_what_they_give_on_the_cpu(tmp_path, options):
    once = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=0", *options]
    runs = [fit(tmp_path / accelerator, accelerator, *once) for accelerator in ("cuda", "cpu")]
    assert_near(*runs, ROUNDING)


@pytest.mark.full  # test_decode_step.py and test_update_budget.py have windows
def test_sliding_windows_give_what_they_give_on_the_cpu(tmp_path, tiny_models):
    """Gemma 3 groups its keys and has a soft cap as well."""
    once = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=0"]
    once.append(f"--model.policy.name={tiny_models['gemma3']}")
    runs = [fit(tmp_path / accelerator, accelerator, *once) for accelerator in ("cuda", "cpu")]
    assert_near(*runs, ROUNDING)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}])
def test_adapters_are_drawn_on_the_cpu_whatever_the_device(monkeypatch, options):
    """A GPU's generator would draw others from the same seed. The twin's would not: so by place."""
    places: list[str] = []
    whole = LoraLayer.reset_lora_parameters

    def reset(layer, *given, **named):
        if named:  # ours; peft's own comes first
            places.extend(each.weight.device.type for each in layer.lora_A.values())
        return whole(layer, *given, **named)

    monkeypatch.setattr(LoraLayer, "reset_lora_parameters", reset)
    with torch.device("cuda"):
        policy = PolicyModel(Policy("rlif-arithmetic", lora=LoRA(rank=4, options=options)))
    assert set(places) == {"cpu"}
    assert {p.device.type for n, p in policy.named_parameters() if "lora_" in n} == {"cuda"}
