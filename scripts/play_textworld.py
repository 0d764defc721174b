"""Make a TextWorld cooking game and play its walkthrough through our adapter.

    pip install textworld
    python scripts/play_textworld.py --seed 1

It shows that an episode's rewards sum to the game's score, although TextWorld's own is a running
one. In a run: ``make: scripts.play_textworld.Cooking``.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from rlif_lightning.environments.adapters import as_environment

GAME = ["tw-cooking", "--recipe=1", "--take=1", "--cook", "--cut", "--open", "--split=train"]


def make_game(path: Path, seed: int) -> None:
    """Make a game file, in about 13 seconds."""
    command = ["tw-make", *GAME, "--output", str(path), "--seed", str(seed), "-f"]
    subprocess.run(command, check=True)


class Cooking:
    """A game in TextWorld's shape, without the title picture and the line of the status.

    Args:
        path: of the game's file.
    """

    def __init__(self, path: str):
        import textworld.gym  # pyright: ignore[reportMissingImports]
        from textworld import EnvInfos  # pyright: ignore[reportMissingImports]

        named = ("policy_commands", "admissible_commands", "won", "max_score")
        infos = EnvInfos(**dict.fromkeys(named, True))
        self.made = textworld.gym.make(textworld.gym.register_game(path, infos))
        self.infos: dict[str, Any] = {}

    def reset(self) -> str:
        """Begin the game."""
        seen, self.infos = self.made.reset()
        return words_of(seen)

    def step(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        """Return what is seen, the score so far, and whether the game is over."""
        seen, score, done, self.infos = self.made.step(action)
        return words_of(seen), score, done, {**self.infos, "success": self.infos["won"]}

    def close(self) -> None:
        """Close the game."""
        self.made.close()


def words_of(seen: str) -> str:
    """Return the words of what TextWorld shows."""
    return " ".join(seen.rpartition("$")[2].partition("\n>")[0].split())


def main() -> None:
    """Make a game and play it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "game.z8"
        make_game(path, given.seed)
        made = Cooking(str(path))
        environment = as_environment(made)
        environment.reset(seed=given.seed)
        commands, rewards = made.infos["policy_commands"], []
        for command in commands:
            step = environment.step(command)
            rewards.append(step.reward)
            print(f"{command}: {step.reward:g}")
        made.close()
        print(f"sum {sum(rewards):g} of {made.infos['max_score']}, won {step.info['won']}")


if __name__ == "__main__":
    main()
