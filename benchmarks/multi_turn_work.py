"""The work of all sides of ``benchmarks/multi_turn.py``: model, problems, tool class, and lengths.

Nothing here imports a trainer. The model is random, so that the lengths of turns are planned: a
turn's last two tokens are a call and the end, and an episode's last turn has no call.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import workload
from workload import Meter

END = 2
CALL = '<tool_call>{"name":"look","arguments":{}}</tool_call>'
WORDS = ("<start>", CALL, "user", "assistant", "tool")  # ids 4 to 8; every other id i is w<i>
CALL_ID, FIRST_WORD = 5, len(workload.SPECIAL) + len(WORDS)
CHAT = (
    "{% for m in messages %}<start> {{ m.role }} {{ m.content or '' }}"
    '{% for c in m.tool_calls or [] %} <tool_call>{"name":"{{ c.function.name }}","arguments":'
    "{{ c.function.arguments | tojson }}}</tool_call>{% endfor %} <eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<start> assistant {% endif %}"
)
# Flags of whole numbers: name, default, meaning.
NUMBERS = (
    ("hidden", 256, "model width"),
    ("layers", 4, "decoder layers"),
    ("vocab", 16000, "vocabulary"),
    ("problems", 2, "problems of a rollout"),
    ("group-size", 8, "episodes of a problem"),
    ("prompt-len", 64, "words of a problem"),
    ("turns", 8, "turns of an episode, the last one without a call"),
    ("turn-tokens", 16, "tokens of a turn"),
    ("observation", 32, "words that a call returns"),
    ("rollouts", 1, "rollouts that are measured, after one that is not"),
    ("seed", 0, "of everything"),
)


def read_flags(description: str) -> argparse.Namespace:
    """Read the flags, which are the same on all sides."""
    parser = argparse.ArgumentParser(description=description)
    workload.add_numbers(parser, NUMBERS)
    parser.add_argument(
        "--random", action="store_true", help="2 to --turns turns of 8 to 2 x --turn-tokens"
    )
    parser.add_argument(
        "--again", action="store_true", help="ours only: a loop that prefills all ids in each turn"
    )
    return parser.parse_args()


def plan(a: argparse.Namespace) -> list[list[int]]:
    """Return the tokens of each turn of each episode of a rollout."""
    rng, episodes = random.Random(a.seed), a.problems * a.group_size
    if not a.random:
        return [[a.turn_tokens] * a.turns for _ in range(episodes)]
    turns = [rng.randint(2, a.turns) for _ in range(episodes)]
    return [[rng.randint(8, 2 * a.turn_tokens) for _ in range(number)] for number in turns]


def words(rng: random.Random, vocab: int, number: int) -> str:
    """Return so many random words."""
    return " ".join(f"w{rng.randrange(FIRST_WORD, vocab)}" for _ in range(number))


def problems(a: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of one rollout: a question, and what the tool needs to know."""
    rng = random.Random(a.seed + 1)
    return [
        {
            "question": words(rng, a.vocab, a.prompt_len),
            "first": rng.randrange(2**20),
            "vocab": a.vocab,
            "observation": a.observation,
        }
        for _ in range(a.problems)
    ]


class Scenery:
    """A tool class of TRL's shape, which both libraries take as it is."""

    def reset(self, first: int = 0, vocab: int = 0, observation: int = 0, **row: Any) -> None:
        """Begin an episode."""
        self.rng, self.vocab, self.number = random.Random(first), vocab, observation
        self.looks = 0

    def look(self) -> str:
        """
        Look around.
        """
        self.looks += 1
        return words(self.rng, self.vocab, self.number)

    def get_reward(self) -> float:
        """Return how often the policy has looked."""
        return float(self.looks)


def save_model(a: argparse.Namespace, folder: Path) -> int:
    """Write model and tokenizer as a folder; return the number of parameters."""
    shape = SimpleNamespace(
        **{"hidden": a.hidden, "layers": a.layers, "vocab": a.vocab, "seed": a.seed},
        **{"intermediate": 0, "heads": 0, "kv_heads": 0, "tie_embeddings": False},
        **{"prompt_len": 4096, "max_new_tokens": 0},
    )
    parameters = workload.save_model(shape, folder)  # type: ignore[arg-type]
    texts = [*workload.SPECIAL, *WORDS, *(f"w{i}" for i in range(FIRST_WORD, a.vocab))]
    workload.save_tokenizer(texts, folder, CHAT)
    return parameters


def report(meter: Meter, framework: str, versions: dict[str, str], done: dict[str, int]) -> None:
    """Print one line of JSON; the first rollout is left out.

    Args:
        meter: of the rollouts.
        framework: the side.
        versions: of what it used.
        done: what one rollout did: turns, sampled and observed tokens.
    """
    timed = sorted(each["cpu_seconds"] for each in meter.records[1:])
    found = {
        "framework": framework,
        "versions": versions | {"python": platform.python_version()},
        "cpu_seconds": timed[len(timed) // 2],
        "peak_mib": workload.memory_mib("VmHWM"),
        "above_start_mib": workload.memory_mib("VmHWM") - meter.before_mib,
        **done,
    }
    print(json.dumps(found), flush=True)
