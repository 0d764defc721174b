"""Teach the embedded model to read feedback on a worked sum (two minutes on one CPU core).

    python scripts/make_feedback_model.py --output runs/distil/model

A teacher that shares the policy's weights must be able to use what it reads, and the embedded
model has never seen a second try. So it is trained a little longer on two kinds of text, half of
each. One is what it knows: problems with solutions of the simulated pupils of
``make_base_model.py``. The other shows what a checker says of such a solution before the problem,
and a second try after it. Of a right solution it says ``=``, as in ``=*3+4+5=``, and the second try
is the same. Of another it shows the first wrong step, as in ``3+4=8*3+4+5=``. The second try is in
the same style, works the steps up to this one rightly, and slips in later steps as often as before.
Problems of the validation split are never trained on.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import make_base_model as base
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.wrong_step import FirstWrongStep, first_wrong_step
from rlif_lightning.data.prompts import ArithmeticProblems
from rlif_lightning.model.loading import resolve_model

TEMPLATE = "{feedback}*{prompt}"


class Slips:
    """Adds two numbers, and slips where a list says so, then by chance."""

    def __init__(self, style: base.Style, rng: random.Random, known: list[bool]):
        self.style, self.rng, self.known = style, rng, known
        self.made: list[bool] = []

    def __call__(self, one: int, other: int) -> int:
        number = len(self.made)
        if number < len(self.known):
            slips = self.known[number]
        else:
            slips = self.rng.random() < self.style.slip_rate
        self.made.append(slips)
        return base.slip(one + other, self.rng) if slips else one + other


def attempt(question: str, style: base.Style, rng: random.Random, known: list[bool]):
    """Return a solution, and which of its additions slipped; the first ones are given."""
    slips = Slips(style, rng, known)
    terms = [int(term) for term in question.rstrip("=").split("+")]
    work, answer = style.work(terms, slips)
    return f"{work}{base.ANSWER_MARK}{answer}", slips.made


def example(question: str, rng: random.Random) -> tuple[str, str]:
    """Return a prompt and a solution: plain, or after what a checker says of an attempt."""
    styles = list(base.STYLES.values())
    [style] = rng.choices(styles, [each.share for each in styles])
    if rng.random() < 0.5:
        return question, attempt(question, style, rng, [])[0]
    text, made = attempt(question, style, rng, [])
    said = FirstWrongStep().words(question, text)
    if any(made):
        text, _ = attempt(question, style, rng, [False] * (made.index(True) + 1))
    return TEMPLATE.format(feedback=said, prompt=question), text


@torch.no_grad()
def accuracies(model, tokenizer, questions: list[str], rng: random.Random) -> dict[str, float]:
    """Return the share of right samples, plain and after feedback on a solution of a pupil."""
    styles = list(base.STYLES.values())
    told = []
    for question in questions:
        [style] = rng.choices(styles, [each.share for each in styles])
        said = FirstWrongStep().words(question, attempt(question, style, rng, [])[0])
        told.append(TEMPLATE.format(feedback=said, prompt=question))
    found = {}
    for name, prompts in (("plain", questions), ("with feedback", told)):
        groups = base.sample(model, tokenizer, prompts, 4)
        right = [
            first_wrong_step(question, text) is None and base.ANSWER_MARK in text
            for question, group in zip(questions, groups, strict=True)
            for text in group
        ]
        found[name] = sum(right) / len(right)
    return found


def main() -> None:
    """Train, measure and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=64_000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    given = parser.parse_args()
    torch.manual_seed(0)
    rng = random.Random(0)
    name = resolve_model("rlif-arithmetic")
    model: Any = AutoModelForCausalLM.from_pretrained(name)
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    source = ArithmeticProblems(base.MIN_TERMS, base.MAX_TERMS, size=given.examples, seed=1)
    examples = [example(question, rng) for question in source.load("train")["question"]]
    base.train(model, tokenizer, examples, 64, given.learning_rate)
    questions = list(source.load("validation")["question"])
    for kind, share in accuracies(model, tokenizer, questions, rng).items():
        print(f"right samples, {kind}: {share:.3f}")
    model.save_pretrained(given.output)
    tokenizer.save_pretrained(given.output)


if __name__ == "__main__":
    main()
