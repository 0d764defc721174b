"""What a config file says that would be lost without a word: refused, with file and remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import _loaders_dumpers as loaders

from rlif_lightning.running.run_settings import LINKED

GROUPS = ("model", "data", "trainer")
SEED = "seed_everything"
FROM_ANOTHER = {**LINKED, "model.seed": SEED, "data.seed": SEED}  # setting -> where it is read
REWARDS = "model.rewards"


def check_config(path: Path) -> None:
    """Refuse what the parser takes from a file and does not use, or does not understand.

    Raises:
        ValueError: the file is no YAML, or has no settings; a group without settings; a setting
            that is read from another one; a reward without a head. Names file and setting.
    """
    said = _read(path)
    if not isinstance(said, Mapping):
        raise ValueError(
            f"{path} has no settings ({said!r:.60}): write them as GROUP: {{NAME: VALUE}}, or take"
            " --config out"
        )
    for group in GROUPS:
        if group in said and said[group] is None:
            raise ValueError(f"{path}: there is nothing below `{group}:`; take that line out")
    for name, source in FROM_ANOTHER.items():
        if _at(said, name) is not None:
            raise ValueError(f"{path}: {name} is read from {source}; set that, and take {name} out")
    rewards = _at(said, REWARDS)
    for name, reward in rewards.items() if isinstance(rewards, Mapping) else ():
        if isinstance(reward, Mapping) and not {"head", "class_path"} & reward.keys():
            option = next((f".{setting}={value}" for setting, value in reward.items()), "")
            raise ValueError(
                f"{path}: {REWARDS}.{name} has no head. A file's rewards take the place of all that"
                " files before it name: write every reward whole, or change one setting by"
                f" --{REWARDS}.{name}{option}"
            )


def _read(path: Path) -> Any:
    """Return what is in a file, with each key of a mapping once."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), loaders.get_yaml_default_loader())
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _at(said: Mapping[str, Any], name: str) -> Any:
    group, _, setting = name.partition(".")
    inner = said.get(group)
    found = inner.get(setting) if isinstance(inner, Mapping) else None
    return said.get(name) if found is None else found
