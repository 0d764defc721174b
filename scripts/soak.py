"""Kill a run at random moments, restart it each time, and compare it with an undisturbed run.

    python scripts/soak.py --kills 20 --out runs/soak
    python scripts/soak.py --full --kills 30 --out runs/soak_full

Each life of a run is the real command line with ``--ckpt_path=auto``, and ends with ``kill -9``.
The kills go through the phases of a run in turn (``soak_kills.py``), each at a moment drawn from a
seed: a thread of the process sends SIGKILL while the phase's own function runs. Without ``--full``
a run is one process with few callbacks. With ``--full`` it has two processes under torchrun, LoRA,
a guard that rolls back, exports, files of samples, a report, and `predict` at the end; a kill hits
either process, torchrun alone, or all at once. In the end everything in ``soak_compare.py`` must
equal that of the undisturbed run, and no partly written file and no process may be left. Otherwise
the exit code is 1. The same command continues an interrupted soak.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from soak_compare import differences, half_written, merged_records, merged_rows
from soak_kills import PHASES, arm, left_over

from rlif_lightning import cli
from rlif_lightning.running.checkpoint_search import find_checkpoints

DATA = [
    "--config=configs/quickstart.yaml",
    "--compare=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.source.init_args.size=32",
    "--data.source.init_args.validation_size=8",
    "--data.validation_prompts_per_batch=8",
    "--data.prompts_per_rollout=8",
    "--data.group_size=4",
]
SAVING = {"class_path": "RunCheckpoints", "init_args": {"every": 1}}
# The mean of four coins a group is above a half now and then: the guard takes snapshots, and goes
# back to them.
COIN = {"metric": "reward/coin/mean", "side": "above", "bound": 0.5, "window": 1, "release": 0}
GUARD = {
    "action": "rollback", "scale": {"learning_rate": 0.95, "rewards.certainty.weight": 0.95},
    "baseline": 1, "snapshot_every": 1, "max_actions": 1000, "detectors": {"coin": COIN},
}  # fmt: skip
HEADS = {
    "vote": {"head": "ClusterVote", "weight": 0.5},
    "coin": {"head": "Random", "weight": 0.2},
    "certainty": {"head": "MeanLogprob", "weight": 0.5},
}
TWO = [
    "--config=configs/strategy/ddp.yaml",
    "--trainer.devices=2",
    "--model.policy.lora.rank=4",
    "--model.optimizer.lr=1e-3",
    "--model.update.updates_per_rollout=2",
    "--model.sampling.max_new_tokens=24",
    f"--model.rewards={json.dumps(HEADS)}",
]
TORCHRUN = [
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node=2",
    "--shutdown-timeout=150",
]
TORCHRUN += ["--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
PATIENCE = 600  # seconds that a process may outlive its run


@dataclass(frozen=True)
class Soak:
    """The run, and what is done to it.

    Attributes:
        kills: how often the run is killed.
        seed: of the moments.
        full: the full configuration on two processes.
        only: phases that kills fall into, in turn; None = those of the configuration.
    """

    kills: int
    seed: int = 0
    full: bool = False
    only: list[str] | None = None

    @property
    def phases(self) -> list[str]:
        """Return the phase of each kill; the last kills of a full soak hit end and `predict`."""
        if self.only is not None:
            return [self.only[n % len(self.only)] for n in range(self.kills)]
        training = ["rollout", "update", "checkpoint"]
        training += (
            ["snapshot", "rollback", "validation", "export", "completions"] if self.full else []
        )
        last = ["end", "end", "prediction", "prediction"] if self.full and self.kills >= 12 else []
        return [training[n % len(training)] for n in range(self.kills - len(last))] + last

    @property
    def epochs(self) -> int:
        """Return the epochs of four rollouts each: two rollouts a kill."""
        return max(2, -(-self.kills // 2))

    def arguments(self, root: Path) -> list[str]:
        """Of a life that trains."""
        exporter = {
            "monitor": "val/entropy",
            "mode": "min",
            "merge_lora": True,
            "folder": str(root / "export"),
        }
        full = {
            "CollapseGuard": GUARD, "HFExporter": exporter,
            "CompletionWriter": {"every": 1, "show": ["tensorboard"]},
            "EntropyMonitor": {}, "RunReport": {},
        }  # fmt: skip
        watchers = (
            [{"class_path": name, "init_args": given} for name, given in full.items()]
            if self.full
            else []
        )
        arguments = [*DATA, *(TWO if self.full else []), f"--trainer.max_epochs={self.epochs}"]
        arguments += [
            "--trainer.check_val_every_n_epoch=1",
            "--model.schedule.name=cosine",
            "--ckpt_path=auto",
        ]
        arguments.append(f"--model.schedule.steps={4 * (2 if self.full else 4) * self.epochs}")
        return ["fit", *arguments, f"--trainer.callbacks={json.dumps([*watchers, SAVING])}"]

    def prediction(self, root: Path) -> list[str]:
        """Return the arguments of a life that predicts: 16 batches of four prompts."""
        small = [
            "--data.source.init_args.validation_size=64",
            "--data.validation_prompts_per_batch=4",
        ]
        given = [*(each for each in DATA if "compare" not in each), *TWO, *small]
        return [
            "predict",
            *given,
            f"--predictions.folder={root / 'predictions'}",
            "--ckpt_path=last",
        ]


class Lives:
    """The lives of one run in a folder.

    Args:
        soak: what is done.
        root: of the run.
    """

    def __init__(self, soak: Soak, root: Path):
        self.soak, self.root, self.slowest = soak, root, 0.0
        root.mkdir(parents=True, exist_ok=True)

    def live(self, number: int | None = None) -> int | None:
        """Run one life, killed in its phase if it has a number; return the exit code or None."""
        phase = None if number is None else self.soak.phases[number]
        mark = self.root / f"kill-{number:02d}" if number is not None else None
        given = (
            self.soak.prediction(self.root)
            if phase == "prediction"
            else self.soak.arguments(self.root)
        )
        armed = (
            []
            if mark is None
            else [
                f"--life={phase}",
                f"--seed={1000 * self.soak.seed + (number or 0)}",
                f"--mark={mark}",
            ]
        )
        code = self._start([*(armed or ["--life=whole"]), "--", *given])
        return None if mark is not None and mark.exists() else code

    def predict(self) -> int:
        """Draw a data set with the trained policy, undisturbed."""
        return self._start(["--life=whole", "--", *self.soak.prediction(self.root)])

    def _start(self, arguments: list[str]) -> int:
        launcher = TORCHRUN if self.soak.full else []
        command = [sys.executable, *launcher, __file__, *arguments]
        command.append(f"--trainer.default_root_dir={self.root}")
        token = str(self.root.resolve())
        own = {"RLIF_SOAK": token, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        own["PYTHONPATH"] = os.pathsep.join(
            [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        self._wait(token)
        with (self.root / "lives.log").open("a") as log:
            code = subprocess.run(
                command, stdout=log, stderr=log, check=False, env=os.environ | own
            ).returncode
        self._wait(token)
        return code

    def _wait(self, token: str) -> None:
        """Wait until no process of the run is left.

        Raises:
            RuntimeError: some are left for too long; they are ended.
        """
        started = time.monotonic()
        while found := left_over(token):
            self.slowest = max(self.slowest, time.monotonic() - started)
            if self.slowest > PATIENCE:
                for pid in found:
                    os.kill(pid, signal.SIGKILL)
                raise RuntimeError(
                    f"processes {found} were left {PATIENCE} s after a life of {self.root}"
                )
            time.sleep(0.1)


def run(soak: Soak, out: Path, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Run once undisturbed and once killed; return the comparison."""
    whole, soaked = Lives(soak, out / "whole"), Lives(soak, out / "soaked")
    codes = [whole.live(), *([whole.predict()] if "prediction" in soak.phases else [])]
    if any(codes):
        raise RuntimeError(f"the undisturbed run ended with {codes}: {whole.root / 'lives.log'}")
    done, codes = Counter(), []
    for number, phase in enumerate(soak.phases):
        mark = soaked.root / f"kill-{number:02d}"
        code = None if mark.exists() else soaked.live(number)
        if code is not None:
            raise RuntimeError(
                f"life {number} ended with {code} and was not killed in {phase}:"
                f" {soaked.root}/lives.log"
            )
        done[f"{phase}, {mark.read_text()}"] += 1
        found = find_checkpoints(soaked.root)
        report(
            f"{number + 1}. {phase}, {mark.read_text()}: newest checkpoint"
            f" {found[0].name if found else None}"
        )
    codes = [soaked.live(), *([soaked.predict()] if "prediction" in soak.phases else [])]
    events = merged_records(whole.root, "events.jsonl").values()
    return {
        "kills": dict(done), "exit_codes": codes, "rollouts": 4 * soak.epochs,
        "rollbacks": sum(event["kind"] == "rollback" for event in events),
        "rows_made_again": merged_rows(soaked.root)[1],
        "half_written_left": half_written(soaked.root),
        "seconds_until_the_last_process_was_gone": round(soaked.slowest, 1),
        "differences": differences(whole.root, soaked.root),
    }  # fmt: skip


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="how often the run is killed")
    parser.add_argument(
        "--full", action="store_true", help="the full configuration on two processes"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/soak"),
        help="a folder; an interrupted soak in it continues",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--phases", nargs="+", choices=list(PHASES), help="that kills fall into, in turn"
    )
    parser.add_argument("--life", help=argparse.SUPPRESS)
    parser.add_argument("--mark", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the command line; ``--life`` is one process of a soak."""
    given = parsed()
    if given.life is not None:
        if given.mark is not None:
            arm(given.life, given.seed, int(os.environ.get("WORLD_SIZE", "1")), given.mark)
        sys.argv = ["rlif", *given.rest]
        cli.command()
        return
    soak, settings = (
        Soak(given.kills, given.seed, given.full, given.phases),
        given.out / "soak.json",
    )
    if settings.exists() and json.loads(settings.read_text()) != asdict(soak):
        raise SystemExit(
            f"--out {given.out} has another soak: {settings.read_text()}; give a new folder"
        )
    given.out.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(asdict(soak)))
    result = run(soak, given.out)
    print(json.dumps(result, indent=1))
    faults = [
        given.full and not result["rollbacks"],
        result["differences"],
        result["half_written_left"],
        any(result["exit_codes"]),
    ]
    raise SystemExit(int(any(faults)))


if __name__ == "__main__":
    main()
