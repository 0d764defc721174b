"""Every shipped YAML is built by the real parser; the CPU ones train two rollouts."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from harness.command_line import ON_CPU, build
from harness.files import ROOT
from rlif_lightning import cli
from rlif_lightning.learning.advantages import GDPO
from rlif_lightning.learning.objectives import KLCov
from rlif_lightning.learning.optimizer import LearningRateSchedule, build_optimizer
from rlif_lightning.learning.update import UpdatePlan
from rlif_lightning.rewards import ClusterVote, GoldAnswer, SelfCertainty
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.rollout.vllm_engine import VLLMEngine, VLLMServerEngine

CONFIGS = ROOT / "configs"
PAPER = {
    "qwen2.5_1.5b_math": ("qwen2", "Qwen/Qwen2.5-1.5B"),
    "qwen2.5_3b_math": ("qwen2", "Qwen/Qwen2.5-3B"),
    "qwen2.5_7b_math": ("qwen2", "Qwen/Qwen2.5-7B"),
    "qwen3_1.7b_base_math": ("qwen3", "Qwen/Qwen3-1.7B-Base"),
}
CPU = {"quickstart.yaml", "smollm2_cpu.yaml"}
OVERLAYS = {"gold.yaml", "stable.yaml"}
QUIET = [
    "--compare=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
SMALL = [
    *QUIET,
    "--trainer.limit_train_batches=2",
    "--trainer.max_epochs=1",
    "--data.prompts_per_rollout=4",
    "--data.validation_prompts_per_batch=8",
    "--data.group_size=2",
    "--model.sampling.max_new_tokens=8",
]


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
    """Configs name folders from the root of the repository."""
    monkeypatch.chdir(ROOT)


def math_problems(folder: Path, size: int) -> str:
    """A local stand-in for MATH with its columns: the gold answer is the solution's box."""
    common = {"level": "Level 1", "type": "Algebra"}
    rows = [
        {"problem": f"{n}+{n + 1}=", **common, "solution": rf"It is \boxed{{{2 * n + 1}}}."}
        for n in range(size)
    ]
    path = folder / "math.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    init_args = {"train": str(path), "validation": str(path)}
    return json.dumps({"class_path": "LocalFiles", "init_args": init_args})


def paper(name: str) -> list[str]:
    return ["--config=configs/paper/base.yaml", f"--config=configs/paper/{name}.yaml"]


def paper_arguments(name: str, folder: Path, tiny_models: dict[str, Path], size: int) -> list[str]:
    """A recipe with a tiny model of its architecture, and with the engine that it has one line
    away.
    """
    architecture, _ = PAPER[name]
    return [
        *paper(name),
        "--config=configs/engine/native.yaml",
        f"--model.policy.name={tiny_models[architecture]}",
        f"--data.source={math_problems(folder, size)}",
        f"--trainer.default_root_dir={folder}",
        *ON_CPU,
    ]


def test_every_shipped_config_is_tested_here():
    shipped = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}
    # A part of this project that adds an overlay of its own adds its own test file beside it, as
    # test_paper_arms.py is that of the paper's presets and arms.
    recipes = {f"paper/{name}.yaml" for name in ("base", *PAPER)}
    assert CPU | OVERLAYS | recipes <= shipped
    others = {"paper/882.yaml", "paper/126.yaml"}
    found = {path for path in shipped if path.startswith("paper/") and "/arms/" not in path}
    assert found == recipes | others


@pytest.mark.parametrize("name", PAPER)
def test_paper_configs_carry_the_papers_values(name, tmp_path, tiny_models):
    run = build(paper_arguments(name, tmp_path, tiny_models, size=882))
    model, data = run.model, run.datamodule
    objective, [adamw] = model.objective, settings_of(model.make_optimizer)
    assert (adamw["lr"], adamw["weight_decay"], adamw["betas"]) == (3e-6, 0.0, (0.9, 0.999))
    assert run.trainer.max_steps == 340 * model.plan.num_updates
    warm_up = run.trainer.max_steps // 10
    assert model.schedule == LearningRateSchedule("cosine", warmup_steps=warm_up)
    assert model.plan == UpdatePlan(4, 1, "sampler", micro_batch_tokens=16384, max_grad_norm=1.0)
    assert (data.group_size, model.group_size, data.prompts_per_rollout) == (7, 7, 882)
    assert (model.sampling.max_new_tokens, model.sampling.temperature) == (3072, 1.0)
    assert isinstance(objective, KLCov)
    assert (objective.fraction, objective.weight, objective.unselected) == (0.02, 0.05, "clipped")
    assert (objective.reference_kl.weight, objective.reference_kl.kind) == (0.005, "k3")
    assert isinstance(model.advantage, GDPO)
    assert model.advantage.batch_norm == "none"
    heads = model.rewards.heads
    assert isinstance(heads["vote"], ClusterVote)
    assert isinstance(heads["certainty"], SelfCertainty)
    assert (heads["vote"].mode, heads["vote"].denominator) == ("soft", "parseable")
    assert (heads["vote"].format_weight, heads["vote"].min_parseable) == (0.1, 1)
    assert heads["vote"].equivalence == "numeric"
    assert heads["certainty"].direction == "uniform_to_model"
    assert model.rewards.weights.tolist() == [0.5, 0.5]
    assert isinstance(model.engine, NativeEngine)
    assert model.engine.max_rows == 64
    assert run.trainer.precision == "bf16-mixed"


@pytest.mark.parametrize("name", PAPER)
def test_paper_configs_name_the_papers_model_and_data(name):
    run = build([*paper(name), *ON_CPU])
    config, shared = run.config, name == "qwen2.5_7b_math"
    assert type(run.model.engine) is (VLLMServerEngine if shared else VLLMEngine)
    if not shared:  # vLLM in the process is for one process alone
        assert run.trainer.num_devices == 1
        assert run.model.engine.options["max_model_len"] > run.model.sampling.max_new_tokens
    assert config.model.policy.name == PAPER[name][1]
    assert config.model.policy.lora is None
    source = config.data.source
    assert source.class_path.endswith("HubDataset")
    assert (source.init_args.name, source.init_args.train_split) == (
        "DigitalLearningGmbH/MATH-lighteval",
        "train",
    )
    assert config.model.rewards["vote"].head.init_args.extractor.kind == "boxed"


# transformers 5.23 renames the method, earlier 5.x know the old name only.
@pytest.mark.full  # what each of them sets: above; another config trains a stand-in below
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@pytest.mark.parametrize(
    "name",
    [
        "qwen3_1.7b_base_math",
        *(f"qwen2.5_{n}b_math" for n in (1.5, 3, 7)),
    ],
)
def test_paper_configs_train_a_stand_in(name, tmp_path, tiny_models):
    arguments = paper_arguments(name, tmp_path, tiny_models, size=12)
    run = cli.main(
        ["fit", *arguments, *SMALL, "--data.validation_prompts=4", "--trainer.val_check_interval=2"]
    )
    assert run.trainer.global_step == 8  # two rollouts of four updates
    assert int(run.model.num_rollouts) == 2
    prompt = run.datamodule.train_dataloader().split.batch([0])
    assert prompt.texts[0].endswith("put your final answer within \\boxed{}.\n")
    assert prompt.texts[0].startswith("0+1=\n")
    # In warm-up the ninth step is next, and the first has learning rate 0.
    assert model_learning_rate(run) == pytest.approx(3e-6 * 8 / 136)
    assert run.model.reference is not None
    assert math.isfinite(float(run.trainer.callback_metrics["policy/reference_kl"]))
    assert "val/greedy_accuracy" in run.trainer.callback_metrics


def settings_of(make_optimizer) -> list[dict]:
    """The settings of every parameter group of an optimiser, without its parameters."""
    made = build_optimizer(make_optimizer, [torch.nn.Parameter(torch.zeros(1))])
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in made.param_groups
    ]


def model_learning_rate(run: cli.RLIFCLI) -> float:
    return run.model.lr_schedulers().get_last_lr()[0]


def fit(folder: Path, *arguments: str) -> cli.RLIFCLI:
    return cli.main(["fit", *arguments, *SMALL, f"--trainer.default_root_dir={folder}"])


SMALL_SOURCE = ["--data.source.init_args.size=8", "--data.source.init_args.validation_size=8"]


@pytest.mark.full  # every run of harness/runs.py has this config
def test_quickstart_trains(tmp_path):
    run = fit(tmp_path, "--config=configs/quickstart.yaml", *SMALL_SOURCE)
    assert run.trainer.global_step == 8
    assert run.model.rewards.names == ["vote", "certainty"]
    assert not any(head.needs_gold for head in run.model.rewards.heads.values())
    assert run.model.policy_settings.name == "rlif-arithmetic"


def test_gold_overlay_trains_on_gold_answers_alone(tmp_path):
    run = fit(
        tmp_path, "--config=configs/quickstart.yaml", "--config=configs/gold.yaml", *SMALL_SOURCE
    )
    assert run.trainer.global_step == 8
    weights = dict(zip(run.model.rewards.names, run.model.rewards.weights.tolist(), strict=True))
    assert isinstance(run.model.rewards.heads["gold"], GoldAnswer)
    assert {name for name, weight in weights.items() if weight} == {"gold"}


CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_smollm2_config_trains_a_stand_in(tmp_path, tiny_models):
    pytest.importorskip("reasoning_gym")
    folder = tmp_path / "model"
    shutil.copytree(tiny_models["llama"], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    arguments = [
        "--config=configs/smollm2_cpu.yaml",
        f"--model.policy.name={folder}",
        *SMALL_SOURCE,
    ]
    run = fit(tmp_path, *arguments, "--model.sampling.max_new_tokens=4")
    assert run.trainer.global_step == 4  # two rollouts of two updates
    text = run.datamodule.train_dataloader().split.batch([0]).texts[0]
    assert text.startswith("<|user|>State the final answer")
    assert "problem: 5 + 7 =\n<|assistant|>5 + 7 = 12\n<|user|>" in text
    assert text.endswith("<|assistant|>")
    assert text.count("<|user|>") == 4  # three examples and the problem
    assert torch.isfinite(run.trainer.callback_metrics["policy/entropy"])


def test_smollm2_config_names_the_folder_that_the_script_writes():
    script = (ROOT / "scripts" / "get_smollm2.py").read_text()
    config = (CONFIGS / "smollm2_cpu.yaml").read_text()
    assert "models/smollm2-135m" in script
    assert "name: models/smollm2-135m" in config
