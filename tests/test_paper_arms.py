"""The presets and arms of arXiv 2605.22620: marks, arithmetic, and two rollouts of each arm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.command_line import ON_CPU, build
from harness.files import ROOT
from harness.runs import assert_same, parameters
from rlif_lightning import cli
from rlif_lightning.learning.advantages import GDPO, GRPO
from rlif_lightning.learning.objectives import Clipped, KLCov

PAPER = ROOT / "configs" / "paper"
MARKS = ("# paper", "# not stated", "# ours", "# as in base.yaml")
# Table 6 of the paper, restated: the place of each value in base.yaml.
TABLE_6 = {
    "data.group_size": 7,
    "data.prompts_per_rollout": 882,
    "model.sampling.temperature": 1.0,
    "model.sampling.max_new_tokens": 3072,
    "model.rewards.vote.weight": 0.5,
    "model.rewards.vote.head.init_args.format_weight": 0.1,
    "model.rewards.certainty.weight": 0.5,
    "model.objective.init_args.fraction": 0.02,
    "model.objective.init_args.weight": 0.05,
    "model.objective.init_args.clip_low": 0.2,
    "model.objective.init_args.clip_high": 0.2,
    "model.objective.init_args.reference_kl.weight": 0.005,
    "model.update.max_grad_norm": 1.0,
    "model.optimizer.lr": 3e-6,
    "model.schedule.name": "cosine",
    "trainer.val_check_interval": 20,
}
# Reward names, the objective, its weight (None = not KL-Cov), the advantage, steps, updates.
ARMS = {
    "gold": (["gold"], Clipped, None, GDPO, 1360, 4),
    "certainty": (["certainty"], Clipped, None, GDPO, 1360, 4),
    "certainty_kl_cov": (["certainty"], KLCov, 0.02, GDPO, 1360, 4),
    "cluster": (["vote"], Clipped, None, GDPO, 1120, 4),
    "no_kl_cov": (["vote", "certainty"], Clipped, None, GDPO, 1360, 4),
    "summed_kl_cov": (["vote", "certainty"], KLCov, 0.05, GRPO, 1360, 4),
    "beta_0.0005": (["vote", "certainty"], KLCov, 0.0005, GDPO, 1360, 4),
    "beta_0.05": (["vote", "certainty"], KLCov, 0.05, GDPO, 1360, 4),
    "beta_0.1": (["vote", "certainty"], KLCov, 0.1, GDPO, 1360, 4),
    "one_update": (["vote", "certainty"], KLCov, 0.05, GDPO, 340, 1),
}
SMALL = [
    "--compare=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.limit_train_batches=2",
    "--trainer.max_epochs=1",
    "--trainer.limit_val_batches=0",
    "--data.prompts_per_rollout=4",
    "--data.validation_prompts=4",
    "--data.validation_prompts_per_batch=4",
    "--data.group_size=4",
    "--model.sampling.max_new_tokens=4",
]


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
    """Configs name folders from the root of the repository."""
    monkeypatch.chdir(ROOT)


def arguments(folder: Path, model: Path, *overlays: str) -> list[str]:
    """The recipe with overlays, on a small model and 12 problems with MATH's columns."""
    rows = [
        {"problem": f"{n}+{n + 1}=", "solution": rf"It is \boxed{{{2 * n + 1}}}."}
        for n in range(12)
    ]
    path = folder / "math.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    source = {
        "class_path": "LocalFiles",
        "init_args": dict.fromkeys(("train", "validation"), str(path)),
    }
    return [
        "--config=configs/paper/base.yaml",
        "--config=configs/paper/qwen2.5_1.5b_math.yaml",
        *(f"--config=configs/paper/{overlay}.yaml" for overlay in overlays),
        "--config=configs/engine/native.yaml",
        f"--model.policy.name={model}",
        f"--data.source={json.dumps(source)}",
        f"--trainer.default_root_dir={folder}",
        *ON_CPU,
    ]


def test_every_arm_is_tested_here():
    assert {path.stem for path in (PAPER / "arms").glob("*.yaml")} == set(ARMS)


@pytest.mark.parametrize("path", sorted(PAPER.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_value_is_marked(path):
    """A class's name without a value of its own, and a file's heading, need no mark."""
    for line in path.read_text().splitlines():
        code = line.partition(" #")[0].strip()
        if code and not code.startswith("#") and not code.endswith(":"):
            assert any(mark in line for mark in MARKS) or "class_path:" in code, line


def value_and_line(place: str) -> tuple[Any, str]:
    """The value of base.yaml at a place, and the line where it stands."""
    text = (PAPER / "base.yaml").read_text()
    value = yaml.safe_load(text)
    node = yaml.compose(text, yaml.SafeLoader)
    for name in place.split("."):
        value = value[name]
        [node] = [child for key, child in node.value if key.value == name]
    return value, text.splitlines()[node.start_mark.line]


@pytest.mark.parametrize("place", TABLE_6)
def test_the_values_of_table_6_stand_in_the_recipe_as_the_papers(place):
    value, line = value_and_line(place)
    value = float(value) if isinstance(TABLE_6[place], float) else value
    assert value == TABLE_6[place]
    assert "# paper" in line


@pytest.mark.parametrize(
    "place",
    [
        "seed_everything",
        "model.advantage.init_args.eps",
        "model.update.updates_per_rollout",
        "model.optimizer.weight_decay",
        "data.format.template",
    ],
)
def test_what_the_paper_does_not_state_is_marked_so(place):
    assert "# not stated" in value_and_line(place)[1]


def test_the_presets_arithmetic():
    """Batch sizes of table 6: per device x accumulation x processes, for 1.5B and for 3B."""
    prompts = {
        name: yaml.safe_load((PAPER / f"{name}.yaml").read_text())["data"]["prompts_per_rollout"]
        for name in ("882", "126")
    }
    assert prompts["882"] == 21 * 14 * 3 == 14 * 21 * 3
    assert prompts["126"] * 7 == prompts["882"]
    assert prompts["882"] * 7 == 6174
    epochs = {name: round(340 * number / 7500, 1) for name, number in prompts.items()}
    assert epochs == {"882": 40.0, "126": 5.7}
    assert (7500 // 882 * 882, 7500 // 126 * 126) == (7056, 7434)  # problems of one epoch


def check(run: cli.RLIFCLI, name: str) -> None:
    """A run has what an arm, or a preset, changes and what it leaves alone."""
    objective = run.model.objective
    kind = (["vote", "certainty"], KLCov, 0.05, GDPO, 1360, 4)
    names, cls, weight, advantage, steps, updates = ARMS.get(name, kind)
    assert run.model.rewards.names == names
    assert type(objective) is cls
    assert getattr(objective, "weight", None) == weight
    assert type(run.model.advantage) is advantage
    assert (run.trainer.max_steps, run.model.plan.num_updates) == (steps, updates)
    assert run.model.schedule.warmup_steps == steps // 10
    assert (objective.clip_low, objective.reference_kl.weight) == (0.2, 0.005)
    assert run.model.advantage.eps == 1e-4
    if "vote" in names:
        vote = run.model.rewards.heads["vote"]
        given = vote.format_weight, vote.equivalence, vote.min_parseable, vote.extractor.kind
        assert given == (0.1, "numeric", 1, "boxed")


@pytest.mark.parametrize("name", ["882", "126", "arms/cluster", "arms/one_update"])
def test_presets_and_arms_are_built(name, tmp_path, tiny_models):
    run = build(arguments(tmp_path, tiny_models["qwen2"], name))
    assert run.datamodule.prompts_per_rollout == (126 if name == "126" else 882)
    check(run, name.removeprefix("arms/"))


@pytest.mark.full  # each is built: above; test_configs.py trains the recipes
# transformers 5.23 renames the method, earlier 5.x know the old name only.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
def test_every_arm_trains_two_rollouts(tmp_path, tiny_models):
    """With one update KL-Cov is inactive: the run is that without it, bit for bit."""
    runs = {}
    for name, (names, *_, updates) in ARMS.items():
        folder = tmp_path / name
        folder.mkdir()
        given = arguments(folder, tiny_models["qwen2"], f"arms/{name}")
        run = runs[name] = cli.main(["fit", *given, *SMALL])
        check(run, name)
        assert run.trainer.global_step == 2 * updates
        logged = run.trainer.callback_metrics
        assert {f"reward/{head}/gradient_norm" for head in names} <= set(logged)
    plain = arguments(tmp_path, tiny_models["qwen2"], "arms/one_update", "arms/no_kl_cov")
    without = cli.main(["fit", *plain, *SMALL])
    assert type(without.model.objective) is Clipped
    assert_same(parameters(runs["one_update"]), parameters(without))
