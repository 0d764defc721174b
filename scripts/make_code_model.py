"""Make a tiny model that writes Python functions and reads the sandbox's trace of a first try.

    python scripts/make_code_model.py --output runs/distil_code/model

No bundled model writes code. This one learns from the solutions of simulated pupils
(``benchmarks/tiny_functions.py``), with a tokenizer of pieces of Python. As with
``make_feedback_model.py``, a part of the texts shows a task alone. The other part shows what the
sandbox says of a pupil's attempt before the task, and a second try after it. The second try is in
the same style, has right what the trace shows, and slips in the rest as often as before. After
``all tests pass`` it is the same code. The first 40 per cent of the texts have no slips. Pupils'
code is our own, so it runs in this process, under the same tests and with the same words as in the
sandbox. Tasks of the validation split are never trained on.
"""

from __future__ import annotations

import argparse
import random
import re
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import make_base_model as base
import torch
from transformers import PreTrainedTokenizerFast
from word_tokenizers import word_tokenizer

from benchmarks.tiny_functions import (
    STYLES,
    Function,
    attempt,
    draw,
    draw_tasks,
    parts_shown,
)
from callbacks.sandbox_trace import ALL_PASS
from rlif_lightning.answers.code_verdicts import pass_rates
from rlif_lightning.data.generated_text import split_of
from rlif_lightning.sandbox.candidate import answer_call, load
from rlif_lightning.sandbox.judge import Candidate, run_tests

TEMPLATE = "{feedback}\n\n{prompt}"
SAMPLES = 4  # of a task
CAREFUL = 0.4  # fraction of the texts without slips
PIECES = [
    *("def f(x)", "f=lambda x", "return ", "if x>4", " else ", ":", "\n", " ", "x", "y", "z"),
    *("=", "*", "+", "assert f(", ") == ", "f(", ") returned ", ") raised ", "the code raised "),
    *("NameError", "SyntaxError", " in line ", ALL_PASS),
]


class OwnCode(Candidate):
    """Code that is trusted, in this process."""

    def __init__(self, code: str):
        super().__init__(None, 0)  # pyright: ignore[reportArgumentType]
        self.module = types.ModuleType("candidate")
        self.load({"code": code, "program": False}, 0)

    def exchange(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Answer as the other process would."""
        if self.ended:
            return {}
        if "code" in message:
            return load(message["code"], self.module)
        return {**answer_call(self.module, message), "number": message["number"]}


def trace_of(code: str, tests: Sequence[str]) -> str:
    """Return what the sandbox would say of trusted code."""
    job = {"setup": "", "tests": tests, "names": ["f"]}
    return run_tests(job, OwnCode(code))["trace"] or ALL_PASS


def example(rng: random.Random, careful: bool) -> tuple[str, str]:
    """Return a prompt and code: plain, or after the trace of an attempt."""
    task = draw(rng)
    while split_of(task.question()) != "train":
        task = draw(rng)
    [style] = rng.choices([*STYLES.values()], [each.share for each in STYLES.values()])
    prompt = task.question()
    tried = attempt(task, style, rng)
    if careful:
        style = replace(style, slip_rate=0.0)
    if rng.random() < 0.5:
        return prompt, style.write(attempt(task, style, rng))
    said = trace_of(style.write(tried), task.tests())
    second = attempt(task, style, rng, parts_shown(task, tried))
    return TEMPLATE.format(feedback=said, prompt=prompt), style.write(second)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer of numbers up to 127 and pieces of Python."""
    known = "|".join(re.escape(piece) for piece in sorted(PIECES, key=len, reverse=True))
    return word_tokenizer([*map(str, range(128)), *PIECES], f"{known}|[0-9]+|.")


def accuracies(model: Any, tokenizer: Any, tasks: Sequence[Function], rng: random.Random):
    """Return the share of samples that pass in the sandbox, plain and after a pupil's trace."""
    pupils = [*STYLES.values()]
    told = []
    for task in tasks:
        [style] = rng.choices(pupils, [each.share for each in pupils])
        said = trace_of(style.write(attempt(task, style, rng)), task.tests())
        told.append(TEMPLATE.format(feedback=said, prompt=task.question()))
    plain = [task.question() for task in tasks]
    problems = [{"test_list": task.tests()} for task in tasks for _ in range(SAMPLES)]
    for name, prompts in (("plain", plain), ("with a trace", told)):
        texts = [
            text for group in base.sample(model, tokenizer, prompts, SAMPLES) for text in group
        ]
        rates = pass_rates(texts, problems)
        yield name, sum(rate == 1 for rate in rates) / len(rates)


def main() -> None:
    """Train, measure and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=64_000)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    given = parser.parse_args()
    torch.manual_seed(0)
    rng = random.Random(0)
    tokenizer = build_tokenizer()
    model = base.build_model(tokenizer)
    careful = round(CAREFUL * given.examples)
    examples = [example(rng, number < careful) for number in range(given.examples)]
    base.train(model, tokenizer, examples, 64, given.learning_rate)
    tasks = draw_tasks("validation", 32, seed=0)
    for kind, share in accuracies(model, tokenizer, tasks, rng):
        print(f"right samples, {kind}: {share:.3f}", flush=True)
    model.save_pretrained(given.output)
    tokenizer.save_pretrained(given.output)


if __name__ == "__main__":
    main()
