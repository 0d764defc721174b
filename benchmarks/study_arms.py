"""The collapse study's arms, and the order in which they are run.

An arm is ``configs/study/base.yaml``, overlays beside it, a learning rate and a few settings. Its
name is ``<recipe>-<rate>[-<control>]``. Rates: ``hot`` 5e-4, ``half`` 2.5e-4, ``quarter`` 1.25e-4,
``eighth`` 6.25e-5. ``PLAN`` holds what carries the claim first: a budget that ends early leaves
every arm of a block with the same seeds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "study"
RECIPES = ("gold", "vote", "paper", "preset")
HOT = 5e-4
RATES = {"hot": HOT, "half": HOT / 2, "quarter": HOT / 4, "eighth": HOT / 8}
SLOWER = 50  # the rates of SmolLM2's arms are so much smaller: 1e-5 and 2.5e-6
UPDATES = 4  # optimiser steps of a rollout, but in arms that say otherwise
JUDGING = (40, 41, 42, 43, 44, 45)  # seeds that no choice of preset, guard or rates has seen
FEW = JUDGING[:3]
TWO = JUDGING[:2]


@dataclass(frozen=True)
class Arm:
    """One arm of the study.

    Attributes:
        overlays: files of ``configs/study/`` after ``base.yaml``, without their suffix.
        rate: learning rate of the first rollout.
        settings: further command-line settings.
        factors: [rollout, factor] steps of the learning rate.
        yoked_to: arm whose learning rates, of another seed, are replayed.
        updates: optimiser steps of a rollout.
        needs: what is made before, names of ``study_inputs.COMMANDS``.
    """

    overlays: tuple[str, ...]
    rate: float = HOT
    settings: tuple[str, ...] = ()
    factors: tuple[tuple[int, float], ...] = ()
    yoked_to: str | None = None
    updates: int = UPDATES
    needs: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Return eight digits that change with anything that the arm's runs depend on."""
        texts = [(CONFIGS / f"{name}.yaml").read_text() for name in ("base", *self.overlays)]
        texts += [repr(self.rate), *self.settings, repr(self.factors), repr(self.yoked_to)]
        return hashlib.sha256(json.dumps([*texts, self.updates]).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Block:
    """Arms that are run together, on the same seeds and for as many rollouts."""

    name: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    rollouts: int

    def runs(self) -> Iterator[tuple[str, int, int]]:
        """Yield arm, seed and rollouts, seed by seed."""
        for seed in self.seeds:
            for arm in self.arms:
                yield arm, seed, self.rollouts


def kl_cov(weight: float, fraction: float) -> tuple[str, ...]:
    """Return the settings of a KL-Cov objective."""
    objective = "--model.objective.init_args"
    return (f"{objective}.weight={weight}", f"{objective}.fraction={fraction}")


def made_arms() -> dict[str, Arm]:
    """Return every arm by its name."""
    arms = {f"{r}-{name}": Arm((r,), rate) for r in RECIPES for name, rate in RATES.items()}
    for name in ("random", "certainty"):
        arms |= {f"{name}-{rate}": Arm((name,), RATES[rate]) for rate in ("hot", "quarter")}
    guarded = [f"{recipe}-{rate}" for recipe in RECIPES for rate in ("hot", "quarter")]
    arms |= {
        f"{name}-guard": Arm((*arms[name].overlays, "guard"), arms[name].rate) for name in guarded
    }
    arms["preset-hot-yoked"] = Arm(("preset",), yoked_to="preset-hot-guard")
    arms["preset-hot-halved"] = Arm(("preset",), factors=((12, 0.5), (20, 0.25)))
    arms["preset-hot-guard_now"] = Arm(("preset", "guard_now"))
    arms["preset-hot-guard_vote"] = Arm(("preset", "guard_vote"))
    arms["paper-hot-no_kl_cov"] = Arm(("paper",), settings=("--model.objective=Clipped",))
    for weight, fraction in GRID:
        name, settings = f"paper-hot-w{weight}-f{fraction}", kl_cov(weight, fraction)
        arms[name] = Arm(("paper",), settings=settings)
    arms |= {f"vote-hot-{name}": Arm((name,)) for name in ("band", "majority")}
    for factor in ANSWERS:
        settings = (f"--model.answer_tokens.factor={factor}",)
        arms[f"vote-hot-answer{factor}"] = Arm(("vote",), settings=settings)
    one = ("--model.update.updates_per_rollout=1",)
    arms["paper-hot-one_update"] = Arm(
        ("paper",), settings=(*one, "--model.objective=Clipped"), updates=1
    )
    for recipe in ("vote", "certainty", "paper"):
        for size in SIZES:
            settings = (f"--data.source.init_args.size={size}",)
            arms[f"{recipe}-hot-{size}"] = Arm((recipe,), settings=settings)
    for rate in ("hot", "quarter"):
        arms[f"vote-{rate}-offline"] = Arm(("offline",), RATES[rate], needs=("frozen",))
    return arms | reference_kl_arms() | family_arms()


def reference_kl_arms() -> dict[str, Arm]:
    """Return the arms that tell the preset's two parts apart, and the pair with a reference KL."""
    weights = {"vote-hot-kl": 0.03, "vote-quarter-kl": 0.03}
    weights |= {"preset-hot-no_kl": 0, "preset-quarter-no_kl": 0}
    weights |= {f"paper-quarter-kl{weight}": weight for weight in PAIR_KL}
    arms = {}
    for name, weight in weights.items():
        recipe, rate, _ = name.split("-")
        arms[name] = Arm((recipe,), RATES[rate], (f"{REFERENCE_KL}.weight={weight}",))
    return arms


def family_arms() -> dict[str, Arm]:
    """Return the arms of other models: word problems of our own, and SmolLM2."""
    arms = {}
    for name in (*FAMILY, *SMOLLM2):
        recipe, rate, model = name.split("-")
        if model == "words":
            arms[name] = Arm((recipe, model), RATES[rate], needs=("words",))
        else:
            needs = ("smollm2", "mawps")
            arms[name] = Arm((recipe, model), RATES[rate] / SLOWER, updates=2, needs=needs)
    return arms | {
        name: Arm(("vote", "words"), RATES["quarter"], word_settings(name), needs=("words",))
        for name in CURVE
    }


def word_settings(name: str) -> tuple[str, ...]:
    """Return checkpoint and problems of an arm such as ``vote-quarter-words2_one``."""
    checkpoint, level = name.rsplit("-words")[1].split("_")
    files = {
        split: f"runs/words/problems/{level}_{split}.jsonl" for split in ("train", "validation")
    }
    return (
        f"--model.policy.name=runs/words/checkpoint_{checkpoint}",
        *(f"--data.source.init_args.{split}={file}" for split, file in files.items()),
    )


REFERENCE_KL = "--model.objective.init_args.reference_kl"
PAIR_KL = (0.005, 0.03)  # the paper's weight of its reference KL, and the preset's
GRID = ((0.05, 0.2), (1, 0.02), (1, 0.2), (10, 0.02), (10, 0.2))  # 0.05, 0.02 is paper-hot
SIZES = (32, 128, 512)  # distinct problems; the other arms have 4,800
ANSWERS = (0, 0.25, 0.5, 0.75)  # share of the policy gradient that an answer's tokens get
LEVELS = ("one", "two", "both")  # steps of word problems
CURVE = tuple(f"vote-quarter-words{n}_{level}" for n in range(1, 7) for level in LEVELS)
FAMILY = tuple(f"{r}-{rate}-words" for rate in ("hot", "quarter") for r in RECIPES)
SMOLLM2 = tuple(
    f"{r}-{rate}-smollm2" for rate in ("hot", "quarter") for r in (*RECIPES, "certainty")
)
ARMS = made_arms()
CORE = ("vote-hot", "vote-quarter", "preset-hot-guard", "preset-quarter")
CLAIMS = (
    *CORE,
    "gold-quarter",
    "preset-hot",
    "paper-hot",
    "gold-hot",
    "paper-quarter",
    "preset-quarter-guard",
)
CONTROLS = (
    "preset-hot-yoked",
    "preset-hot-halved",
    "vote-hot-guard",
    "gold-hot-guard",
    "preset-hot-guard_vote",
    "preset-hot-guard_now",
    "vote-half",
    "preset-half",
    "vote-eighth",
    "preset-eighth",
    "random-hot",
    "random-quarter",
    "paper-hot-guard",
)
LONG = ("vote-quarter", "preset-quarter", "preset-hot-guard", "gold-quarter")
PARTS = ("vote-quarter-kl", "preset-quarter-no_kl")
PARTS_HOT = ("vote-hot-kl", "preset-hot-no_kl")
PAIR = tuple(f"paper-quarter-kl{weight}" for weight in PAIR_KL)
KL_COV = (
    "paper-hot-no_kl_cov",
    "paper-hot-one_update",
    *(f"paper-hot-w{weight}-f{fraction}" for weight, fraction in GRID),
)
PROBLEMS = tuple(f"{r}-hot-{size}" for r in ("vote", "certainty", "paper") for size in SIZES)
OTHERS = ("vote-hot-band", "vote-hot-majority", *(f"vote-hot-answer{f}" for f in ANSWERS))
OFFLINE = ("vote-hot-offline", "vote-quarter-offline")
PLAN = (
    Block("core", CORE, JUDGING, 300),
    Block("claims", CLAIMS, JUDGING, 300),
    Block("controls", CONTROLS, JUDGING, 300),
    Block("long", LONG, JUDGING, 1200),
    Block("which part holds", PARTS, JUDGING, 1200),
    Block("which part holds at the hot rate", PARTS_HOT, JUDGING, 300),
    Block("the pair with a reference KL", PAIR, JUDGING, 300),
    Block("KL-Cov", KL_COV, FEW, 300),
    Block("distinct problems", ("certainty-hot", *PROBLEMS), FEW, 300),
    Block("groups and tokens left out", OTHERS, FEW, 300),
    Block("labels from the start", OFFLINE, FEW, 300),
    Block("second family", FAMILY, FEW, 300),
    Block("start and end", CURVE, FEW, 300),
    Block("SmolLM2", SMOLLM2, TWO, 270),
)
