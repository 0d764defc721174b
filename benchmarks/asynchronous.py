"""Measure a step's time with rollouts drawn ahead, against a server of a fixed latency.

``python -m benchmarks.asynchronous --latency 6`` trains the quickstart's model against the
stand-in server of our tests. Its completions are random tokens of full length that come after a
wait, so that it takes no processor time, as a server on another machine. Printed are medians
over the rollouts after the first two, in seconds: the time in which the trainer waits for
completions and scores them, that of rewards, that of the update, and their sum.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rlif_lightning import cli
from rlif_lightning.running.metrics_csv import read_logged

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the harness is in no package
stand_in = importlib.import_module("harness.stand_in_server").stand_in

PARTS = ("time/rollout", "time/reward", "time/update")
WARM_UP = 2  # rollouts


def answer_late(server: Any, latency: float) -> None:
    """Make the server answer with random tokens after a wait, in seconds."""
    answer = server.answer

    def late(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path != "/v1/completions":
            return answer(path, body)
        time.sleep(latency)
        return 200, {"choices": [random_choice(body, index) for index in range(body["n"])]}

    server.answer = late


def random_choice(body: dict[str, Any], index: int) -> dict[str, Any]:
    """Return a completion of random digits that is cut at the length limit."""
    length = body["max_tokens"]
    ids = torch.randint(3, 12, (length,), generator=torch.Generator().manual_seed(body["seed"]))
    return {
        "index": index,
        "token_ids": ids.roll(index).tolist(),
        "logprobs": {"token_logprobs": [-2.0] * length},
        "finish_reason": "length",
    }


def measure(staleness: int, arguments: argparse.Namespace) -> list[float]:
    """Train, and return the median seconds of each part."""
    with tempfile.TemporaryDirectory() as folder, stand_in() as server:
        answer_late(server, arguments.latency)
        cli.main(
            [
                "fit",
                f"--config={ROOT}/configs/quickstart.yaml",
                f"--config={ROOT}/configs/engine/vllm_server.yaml",
                f"--model.engine.server={server.url}",
                f"--model.engine.weights_folder={folder}/weights",
                f"--model.engine.staleness={staleness}",
                "--model.engine.max_gap=1e6",  # random tokens are not the policy's
                f"--trainer.default_root_dir={folder}",
                f"--trainer.limit_train_batches={arguments.rollouts}",
                "--trainer.limit_val_batches=0",
                "--trainer.enable_progress_bar=false",
                "--trainer.enable_model_summary=false",
                "--compare=false",
                *arguments.rest,
            ]
        )
        logged = read_logged(next(Path(folder).rglob("metrics.csv")))
    rows = [row for row in logged.rows if "time/update" in row][WARM_UP:]
    return [statistics.median(float(row[part]) for row in rows) for part in PARTS]


def main() -> None:
    """Print a table with a row for each staleness."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=6.0, help="seconds of a draw")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rollouts", type=int, default=12)
    parser.add_argument("rest", nargs="*", help="arguments of `fit`, after --")
    arguments = parser.parse_args()
    found = {staleness: measure(staleness, arguments) for staleness in arguments.staleness}
    print(f"latency: {arguments.latency} s")
    print(
        "| staleness | wait and score | reward | update | step |\n| --- | --- | --- | --- | --- |"
    )
    for staleness, parts in found.items():
        print(f"| {staleness} | {' | '.join(f'{each:.2f}' for each in (*parts, sum(parts)))} |")


if __name__ == "__main__":
    main()
