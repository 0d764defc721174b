"""Make the second family: a byte-pair model of word problems, at six stages of its training.

    python scripts/make_word_model.py --output runs/words

A Llama learns to solve the problems of ``word_problems.py`` from solutions without slips. It is
trained in rounds on new problems, each with a learning rate that rises and falls, and measured
after each. Training ends when the accuracy has reached the last of ``TARGETS``. Six rounds, those
nearest to the targets, become ``checkpoint_1`` to ``checkpoint_6``. ``problems/`` has the problems
of each level, for training and validation. ``checkpoints.csv`` says how good the checkpoints are.

A run that was killed goes on after its last whole round. The same versions give the same models on
one thread of one machine.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import make_base_model as base
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from word_problems import LEVELS, WordProblem, problems, solution
from word_tokenizers import SPECIAL, fast_tokenizer

PIECES = 1800
TARGETS = (0.10, 0.22, 0.34, 0.46, 0.58, 0.70)  # sampled accuracy
SAMPLES = 8
TRAIN, VALIDATION = 4800, 128  # problems of a level in the files
LEARNING_RATE = 4e-3


def prompt(problem: WordProblem) -> str:
    """Return the text that the model reads."""
    return f"{problem.question}\n"


def take(split: Any, level: str, number: int, seed: int) -> list[WordProblem]:
    """Draw so many problems."""
    return list(itertools.islice(problems(split, level, random.Random(seed)), number))


def examples(number: int, seed: int) -> list[tuple[str, str]]:
    """Draw prompts with solutions."""
    rng = random.Random(seed)
    return [(prompt(each), solution(each, rng)) for each in take("train", "both", number, seed)]


def build_tokenizer(texts: Sequence[str], pieces: int = PIECES) -> PreTrainedTokenizerFast:
    """Learn a byte-pair tokenizer, as GPT-2's, from texts."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces, special_tokens=list(SPECIAL), initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(texts, trainer)
    return fast_tokenizer(core, SPECIAL)


def measure(model: Any, tokenizer: Any, given: Sequence[WordProblem]) -> dict[str, float]:
    """Return sampled accuracy with its 95 % interval over problems, and that of the majority of 8.

    The interval is 1.96 standard errors of the problems' own accuracies.
    """
    torch.manual_seed(0)
    groups = base.sample(model, tokenizer, [prompt(each) for each in given], SAMPLES)
    found = [[text.partition("#### ")[2] for text in group] for group in groups]
    golds = [str(each.answer) for each in given]
    own = torch.tensor(
        [[a == gold for a in group] for group, gold in zip(found, golds, strict=True)]
    )
    shares = own.double().mean(1)
    half = 1.96 * shares.std().item() / math.sqrt(len(given))
    votes = [max(sorted(set(group)), key=group.count) for group in found]
    right = [vote == gold for vote, gold in zip(votes, golds, strict=True)]
    accuracy = shares.mean().item()
    low, high = max(0.0, accuracy - half), min(1.0, accuracy + half)
    return {"sampled": accuracy, "low": low, "high": high, "majority@8": sum(right) / len(right)}


def rounds_of(folder: Path) -> list[Path]:
    """Return the folders of whole rounds, in order."""
    return sorted(path.parent for path in folder.glob("round_*/figures.json"))


def run_round(model: Any, tokenizer: Any, folder: Path, number: int, size: int) -> dict[str, float]:
    """Train a round on problems of its own, measure and save; return the figures."""
    started, path = time.process_time(), folder / f"round_{number:02d}"
    torch.manual_seed(number)
    base.train(model, tokenizer, examples(size, 1000 + number), 64, LEARNING_RATE)
    figures = measure(model, tokenizer, take("validation", "both", VALIDATION, 0))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    figures["CPU seconds"] = time.process_time() - started
    (path / "figures.json").write_text(json.dumps(figures))  # last: the round is whole
    return figures


def train(folder: Path, size: int, most: int) -> list[Path]:
    """Train rounds until the last target is reached; return their folders.

    Args:
        folder: has a folder for each round; goes on after the last whole one.
        size: problems of a round.
        most: rounds at most.
    """
    done = rounds_of(folder)
    if done:
        tokenizer: Any = AutoTokenizer.from_pretrained(done[-1])
        model: Any = LlamaForCausalLM.from_pretrained(done[-1])
    else:
        torch.manual_seed(0)
        tokenizer = build_tokenizer([" ".join(pair) for pair in examples(20_000, 1)])
        model = base.build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, vocabulary of {len(tokenizer)}", flush=True)
    while len(done) < most and (not done or figures_of(done[-1])["sampled"] < TARGETS[-1]):
        figures = run_round(model, tokenizer, folder, len(done) + 1, size)
        done = rounds_of(folder)
        print(len(done), {name: round(value, 3) for name, value in figures.items()}, flush=True)
    return done


def figures_of(path: Path) -> dict[str, float]:
    """Return what a round's model was measured at."""
    return json.loads((path / "figures.json").read_text())


def nearest(accuracies: Sequence[float], targets: Sequence[float]) -> list[int]:
    """Return the place of a different accuracy for each target, the nearest, in order of targets.

    Example:
        >>> nearest([0.0, 0.2, 0.25, 0.6], [0.1, 0.22, 0.7])
        [0, 1, 3]
    """
    ways = itertools.combinations(range(len(accuracies)), len(targets))

    def distance(places: tuple[int, ...]) -> float:
        return sum(abs(accuracies[p] - t) for p, t in zip(places, targets, strict=True))

    return list(min(ways, key=distance))


def write_problems(folder: Path) -> None:
    """Write the problems of each level as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for level in LEVELS:
        for split, number in (("train", TRAIN), ("validation", VALIDATION)):
            rows = [
                json.dumps({"question": prompt(each), "answer": str(each.answer)})
                for each in take(split, level, number, seed=7)
            ]
            (folder / f"{level}_{split}.jsonl").write_text("\n".join([*rows, ""]))


def publish(folder: Path, done: Sequence[Path]) -> None:
    """Copy the chosen rounds to ``checkpoint_1`` and so on, measure each level, write the table."""
    accuracies = [figures_of(path)["sampled"] for path in done]
    lines = []
    for number, place in enumerate(nearest(accuracies, TARGETS), 1):
        path = folder / f"checkpoint_{number}"
        shutil.copytree(done[place], path, dirs_exist_ok=True)
        tokenizer, model = (
            AutoTokenizer.from_pretrained(path),
            LlamaForCausalLM.from_pretrained(path),
        )
        for level in LEVELS:
            figures = measure(model, tokenizer, take("validation", level, VALIDATION, seed=7))
            shown = {name: f"{value:.3f}" for name, value in figures.items()}
            lines.append({"checkpoint": number, "round": place + 1, "level": level, **shown})
            print(lines[-1], flush=True)
    with (folder / "checkpoints.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def main() -> None:
    """Train, choose, measure and write.

    Raises:
        SystemExit: there are fewer rounds than checkpoints.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/words"))
    parser.add_argument("--examples", type=int, default=4000, help="of a round")
    parser.add_argument("--rounds", type=int, default=24, help="at most")
    given = parser.parse_args()
    torch.set_num_threads(1)  # the models would otherwise depend on how many there are
    write_problems(given.output / "problems")
    done = train(given.output / "rounds", given.examples, given.rounds)
    if len(done) < len(TARGETS):
        raise SystemExit(
            f"{len(done)} rounds are fewer than {len(TARGETS)} checkpoints: raise --rounds, or"
            " lower --examples"
        )
    publish(given.output, done)


if __name__ == "__main__":
    main()
