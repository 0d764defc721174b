"""Make a small model that has seen players of one TextWorld game, and the problems to train it on.

    pip install textworld
    python scripts/make_textworld_model.py --output runs/textworld

A player takes the next command of the walkthrough as often as ``SEES`` says, else any command that
the game admits. The folder gets ``game.z8``, ``problems.jsonl`` and ``model``. docs/environments.md
has the command that trains it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import make_base_model as base
import torch
from play_textworld import Cooking, make_game
from tokenizers import Regex, pre_tokenizers
from word_tokenizers import SPECIAL, fast_tokenizer, word_level

TURNS, SEES, QUESTION, END = 10, 0.5, "cook", "</s>"
PARTS = (("\n", "isolated"), (r"[^\w\s]", "isolated"), (" +", "removed"))


def play(game: Cooking, rng: random.Random) -> tuple[str, str, float]:
    """Return an episode as the prompt and the text after it, and the score."""
    prompt, text, score = f"{QUESTION}\n{game.reset()}\n", "", 0.0
    for _ in range(TURNS):
        known = game.infos["policy_commands"] if rng.random() < SEES else []
        command = known[0] if known else rng.choice(game.infos["admissible_commands"])
        seen, score, done, _ = game.step(command)
        text += f"{command}{END}"
        if done:
            break
        text += f"\n{seen}\n"
    return prompt, text, score


def main() -> None:
    """Play, train and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/textworld"))
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    path, rng, started = given.output / "game.z8", random.Random(given.seed), time.process_time()
    make_game(path, given.seed)
    game = Cooking(str(path))
    played = [play(game, rng) for _ in range(given.episodes)]
    game.close()
    mean = sum(score for *_, score in played) / len(played)
    print(f"mean score of the players {mean:.2f}, {time.process_time() - started:.0f} CPU s")
    splits = [pre_tokenizers.Split(Regex(part), how) for part, how in PARTS]
    splitter = pre_tokenizers.Sequence(splits)
    texts = {prompt + text.replace(END, " ") for prompt, text, _ in played}
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text)}
    core = word_level([*SPECIAL, *sorted(words)])
    core.pre_tokenizer = splitter
    tokenizer = fast_tokenizer(core, SPECIAL)
    tokenizer.model_max_length = 2048
    torch.manual_seed(given.seed)
    model = base.build_model(tokenizer)
    model.config.max_position_embeddings = tokenizer.model_max_length
    examples = [(prompt, text) for prompt, text, _ in played]
    base.train(model, tokenizer, examples, batch_size=8, learning_rate=4e-3)
    print(f"{len(tokenizer)} words; trained, {time.process_time() - started:.0f} CPU s in all")
    model.save_pretrained(given.output / "model")
    tokenizer.save_pretrained(given.output / "model")
    problems = given.output / "problems.jsonl"
    problems.write_text(f"{json.dumps({'question': QUESTION})}\n" * 64)


if __name__ == "__main__":
    main()
