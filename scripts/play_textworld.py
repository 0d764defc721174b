"""Make a TextWorld cooking game and play its walkthrough through our adapter.

    pip install textworld
    python scripts/play_textworld.py --seed 1

It shows that an episode's rewards sum to the game's score, although TextWorld's own is a running
one. In a run: ``make: scripts.play_textworld.cooking``.
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


def cooking(path: str) -> Any:
    """Return a game as TextWorld's own environment, which the library adapts."""
    import textworld.gym  # pyright: ignore[reportMissingImports]
    from textworld import EnvInfos  # pyright: ignore[reportMissingImports]

    infos = EnvInfos(policy_commands=True, won=True, max_score=True)
    return textworld.gym.make(textworld.gym.register_game(path, infos))


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
        made = cooking(str(path))
        _, infos = made.reset()
        environment = as_environment(made)
        environment.reset(seed=given.seed)
        rewards = []
        for command in infos["policy_commands"]:
            step = environment.step(command)
            rewards.append(step.reward)
            print(f"{command}: {step.reward:g}")
        made.close()
        print(f"sum {sum(rewards):g} of {infos['max_score']}, won {step.info['won']}")


if __name__ == "__main__":
    main()
