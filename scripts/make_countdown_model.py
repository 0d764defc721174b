"""Make a small base model that can play Countdown-Stepwise (about 2 minutes on one CPU core).

    python scripts/make_countdown_model.py --output runs/reuserl/model

A Llama of the embedded model's size learns from episodes of simulated players who see a way to the
target as often as not, wander otherwise, and make invalid moves. They begin again by RESET where no
way is left. The model learns what the game answers as well, which is how it learns to compute.
Games of the validation split are never trained on. The same seed and versions give the same model.
"""

from __future__ import annotations

import argparse
import functools
import random
import time
from pathlib import Path

import make_base_model as base
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from word_tokenizers import fast_tokenizer, word_level

from rlif_lightning.environments import games
from rlif_lightning.environments.problems import CountdownProblems

MAX_TURNS = 8
SEES, INVALID = 0.6, 0.1  # how often a player sees the way, and moves what it cannot
END = "</s>"
Move = tuple[str, int, int]


def moves(numbers: tuple[int, ...]) -> list[tuple[Move, tuple[int, ...]]]:
    """Return every allowed move, with the numbers after it."""
    found = []
    for i, a in enumerate(numbers):
        for j, b in enumerate(numbers):
            for name in games.OPERATIONS if i != j else ():
                made = games.result(name, a, b)
                if made is not None:
                    rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
                    found.append(((name, a, b), tuple(sorted([*rest, made]))))
    return found


@functools.lru_cache(maxsize=2**18)
def ways(numbers: tuple[int, ...], target: int) -> tuple[Move, ...]:
    """Return the moves from which the target can be reached, whatever it takes."""
    return tuple(
        move
        for move, after in moves(numbers)
        if games.result(*move) == target or (len(after) > 1 and ways(after, target))
    )


def choose(game: games.CountdownStepwise, rng: random.Random) -> str:
    """Return a player's action."""
    numbers = tuple(sorted(game.numbers))
    if rng.random() < INVALID:
        a, b = rng.choice(numbers), rng.randint(1, game.largest)
        return f"{rng.choice([*games.OPERATIONS])} {a} {b}"
    good, every = ways(numbers, game.target), moves(numbers)
    if good and rng.random() < SEES:
        name, a, b = rng.choice(good)
    elif len(numbers) == 1 or not every or (not good and rng.random() < SEES):
        return "RESET"
    else:
        (name, a, b), _ = rng.choice(every)
    return f"{name} {a} {b}"


def play(row: dict, rng: random.Random) -> str:
    """Return an episode as text: actions, each with its end, and what the game answers."""
    game, text = games.CountdownStepwise(), ""
    game.reset(**row)
    for _ in range(MAX_TURNS):
        action = choose(game, rng)
        step = game.step(action)
        text += f"{action}{END}"
        if step.done:
            break
        text += f"\n{step.observation}\n"
    return text


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer of words, numbers up to 99 and line ends."""
    special = ["<pad>", "<s>", END, "<unk>"]
    words = [*games.OPERATIONS, "RESET", "invalid", "=", "\n"]
    vocabulary = [*special, *words, *map(str, range(games.LARGEST + 1))]
    core = word_level(vocabulary)
    parts = [(Regex("\n"), "isolated"), (Regex(" +"), "removed")]
    splits = [pre_tokenizers.Split(*each) for each in parts]
    core.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return fast_tokenizer(core, special)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/reuserl/model"))
    parser.add_argument("--numbers", type=int, default=3, help="of a game (default: 3)")
    parser.add_argument("--episodes", type=int, default=16_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    rng, started = random.Random(given.seed), time.perf_counter()
    rows = CountdownProblems(given.numbers, size=given.episodes, seed=given.seed).load("train")
    examples = [(row["question"], play(row, rng)) for row in rows]
    solved = sum(text.endswith(END) for _, text in examples) / len(examples)
    print(f"{len(examples)} episodes, {solved:.2f} solved; {time.perf_counter() - started:.0f} s")
    tokenizer = build_tokenizer()
    model = base.build_model(tokenizer)
    base.train(model, tokenizer, examples, batch_size=64, learning_rate=4e-3)
    print(f"trained, {time.perf_counter() - started:.0f} s in all")
    model.save_pretrained(given.output)
    tokenizer.save_pretrained(given.output)


if __name__ == "__main__":
    main()
