"""Measure memory and time of each process of a run that is spread over several, under gloo.

``python -m benchmarks.ranks --processes 4 --strategy fsdp2`` makes a random Llama model (57 million
parameters) in a temporary folder, trains it for three rollouts and prints one line per process.
Memory is the process's own (anonymous) resident memory, read every two milliseconds, above its
value before the model was loaded. Mapped pages of the weight files do not count: all processes
share them, and the system may drop them. Time is the mean of the rollouts after the first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlif_lightning import cli
from rlif_lightning.model.loading import resolve_model

MIB = 1024
# Linux gives these ports to nobody who has not asked for one by its number.
ASKED_FOR = range(10_000, 32_000)


def free_port() -> int:
    """Return a local port that is free now and that the system gives to nobody by itself.

    A port that ``bind`` chose can go to any other process as soon as it is closed again.
    """
    while True:
        port = random.SystemRandom().choice(ASKED_FOR)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def forked(number: int) -> bool:
    """Start several connected processes; return True in each, False in the parent.

    Raises:
        SystemExit: one of them failed; the others are stopped.
    """
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
        NODE_RANK="0",
        WORLD_SIZE=str(number),
    )
    children = []
    for rank in range(number):
        child = os.fork()
        if child == 0:
            os.environ["LOCAL_RANK"] = str(rank)
            return True
        children.append(child)
    for _ in range(number):
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            raise SystemExit(1)
    return False


class Peak:
    """The largest anonymous resident memory of this process since the last reading, in MiB."""

    def __init__(self) -> None:
        self.largest = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.largest = max(self.largest, resident())
            time.sleep(0.002)

    def take(self) -> float:
        """Return the largest value so far, and reset it."""
        largest, self.largest = self.largest, 0.0
        return largest


class Meter(Callback):
    """A callback that measures resident memory, wall time and CPU time of this process.

    Args:
        folder: where ``RANK.json`` goes.
    """

    def __init__(self, folder: str):
        self.folder, self.found = Path(folder), {}
        self.walls: list[float] = []

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Measure memory before the model is loaded."""
        self.peak, self.before = Peak(), resident()

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Measure memory after the model is loaded."""
        self.found["loading, peak"] = self.peak.take() - self.before
        self.found["loaded"] = resident() - self.before
        self.found["weights held"] = (
            sum(_local(p).nbytes for p in pl_module.policy.parameters()) / MIB**2
        )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start the clocks."""
        self.start, self.cpu_start = time.perf_counter(), time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clocks."""
        self.walls.append(time.perf_counter() - self.start)
        self.found["CPU-s"] = time.process_time() - self.cpu_start

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the result."""
        self.found["training, peak"] = self.peak.take() - self.before
        self.found["s a rollout"] = sum(self.walls[1:]) / len(self.walls[1:])
        self.folder.joinpath(f"{trainer.global_rank}.json").write_text(json.dumps(self.found))

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: checkpoints hold nothing of this callback."""
        return {}


def _local(parameter: Any) -> Any:
    return getattr(parameter, "_local_tensor", parameter)


def resident() -> float:
    """Return this process's anonymous resident memory in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / MIB for line in lines if line.startswith("RssAnon"))


def make_model(folder: Path, layers: int, width: int) -> None:
    """Save a random model with the embedded model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("rlif-arithmetic"))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=8 * width // 3,
        num_hidden_layers=layers, num_attention_heads=width // 64, num_key_value_heads=width // 64,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def arguments(folder: Path, args: argparse.Namespace) -> list[str]:
    """Return the command line of the run."""
    given = [
        "fit",
        "--config=configs/quickstart.yaml",
        "--compare=false",
        "--trainer.limit_val_batches=0",
    ]
    if args.processes > 1 or args.strategy != "ddp":
        given += [
            f"--config=configs/strategy/{args.strategy}.yaml",
            f"--trainer.devices={args.processes}",
        ]
    if args.keep_sharded:
        given.append("--trainer.strategy.init_args.keep_sharded=true")
    if args.reshard_gradients:
        given.append("--trainer.strategy.init_args.reshard_gradients=true")
    given += [f"--trainer.default_root_dir={folder}", f"--model.policy.name={folder / 'model'}"]
    given += [
        "--trainer.enable_checkpointing=false",
        "--trainer.enable_progress_bar=false",
        "--trainer.logger=false",
    ]
    given += [
        f"--trainer.limit_train_batches={args.rollouts}",
        "--data.group_size=4",
        "--data.prompts_per_rollout=8",
    ]
    given += [
        "--model.update.updates_per_rollout=2",
        "--model.sampling.max_new_tokens=16",
        "--model.update.micro_batch_tokens=256",
    ]
    meter = {"class_path": "benchmarks.ranks.Meter", "init_args": {"folder": str(folder)}}
    return [*given, f"--trainer.callbacks+={json.dumps(meter)}"]


def main() -> None:
    """Run and print the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--strategy", choices=["ddp", "fsdp2", "fsdp2_offload", "tp"], default="fsdp2"
    )
    parser.add_argument("--keep-sharded", action="store_true")
    parser.add_argument("--reshard-gradients", action="store_true")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rollouts", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", args.layers, args.width)
        if args.processes == 1 or forked(args.processes):
            cli.main(arguments(folder, args))
            if args.processes > 1:
                os._exit(0)  # the folder is the parent's to remove
        for path in sorted(folder.glob("*.json")):
            found = json.loads(path.read_text()).items()
            print(
                f"process {path.stem}: " + ", ".join(f"{key} {value:.1f}" for key, value in found)
            )
    print(f"cores: {os.cpu_count()}; memory in MiB")


if __name__ == "__main__":
    main()
