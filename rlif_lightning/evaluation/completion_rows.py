"""Completions as plain records, for JSONL files and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rlif_lightning.data.described import plain
from rlif_lightning.environments.base import Episode
from rlif_lightning.masked import mean_over_completion
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.running.plain_json import json_text

# Fields that some runs have. What is in them differs from row to row, so Parquet holds it as JSON.
NESTED = ("episode", "extra")


def with_json(record: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """Return a record with these fields as JSON; null where it has none."""
    return dict(record) | {name: json_text(record.get(name)) for name in fields}


def completion_records(
    rollout: Rollout, outputs: Mapping[str, RewardOutput] | None = None
) -> list[dict[str, Any]]:
    """Return one flat record per completion: prompt, text, figures, and each head's score or null.

    Without ``outputs`` there are no scores. ``mean_logprob`` and ``mean_entropy`` are in nats per
    token, ``length`` in tokens. ``extra`` has the columns that a head added, by its name, and
    ``episode`` the turns under an environment.
    """
    mean_logprob = mean_over_completion(rollout.stats.logprobs, rollout.mask).tolist()
    mean_entropy = mean_over_completion(rollout.stats.entropy, rollout.mask).tolist()
    lengths, ended, index = (
        rollout.lengths.tolist(),
        rollout.ended.tolist(),
        rollout.prompts.index.tolist(),
    )
    scores = {name: output.scores.tolist() for name, output in (outputs or {}).items()}
    extra = {name: output.columns for name, output in (outputs or {}).items() if output.columns}
    records = []
    for row, text in enumerate(rollout.texts):
        p, g = divmod(row, rollout.group_size)
        record = {
            "index": index[p],
            "completion_number": g,
            "prompt": rollout.prompts.texts[p],
            "completion": text,
            "length": lengths[row],
            "ended": ended[row],
            "mean_logprob": mean_logprob[row],
            "mean_entropy": mean_entropy[row],
        }
        if rollout.episodes is not None:
            record["episode"] = episode_record(rollout.episodes[row])
        if outputs is not None:
            record["scores"] = {
                name: None if s[row] != s[row] else s[row] for name, s in scores.items()
            }
        if extra:
            record["extra"] = {
                name: {column: plain(values[row]) for column, values in columns.items()}
                for name, columns in extra.items()
            }
        records.append(record)
    return records


def episode_record(episode: Episode) -> dict[str, Any]:
    """Return an episode as plain values: how it stopped, and each turn with what answered it."""
    turns = [
        {
            "action": turn.action,
            "observation": plain(turn.observation),
            "reward": turn.reward,
            "info": plain(dict(turn.info)),
        }
        for turn in episode.turns
    ]
    reward = episode.reward
    record = {"stop": episode.stop, "reward": reward if reward == reward else None, "turns": turns}
    return record | ({"failure": episode.failure} if episode.failure else {})
