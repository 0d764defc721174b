"""Launches, host waits and uploads per decode step and per micro-batch, counted on the device twin.

python tests/count_launches.py [MODEL_FOLDER ...] [--decoding] [--sites]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from device_twin.backend import install

torch.set_num_threads(1)  # small operations take longer on more of them
install()
from device_twin.workload import Counts, Workload, deep_model  # noqa: E402


def counted(name: str, precision: str, decoding: bool) -> dict[str, Counts]:
    """Every figure of one model in one precision."""
    work = Workload(name, precision)
    figures = {
        "decode step, rows end one by one": work.decode_step(),
        "decode step, rows end together": work.decode_step(even=True),
        "decode step of Hugging Face's generate": work.generate_step(),
    }
    return figures if decoding else figures | {"micro-batch": work.micro_batch()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models",
        nargs="*",
        help="folders; none = the embedded model and a random Qwen2 of 28 layers",
    )
    parser.add_argument("--decoding", action="store_true", help="decode steps alone")
    parser.add_argument(
        "--sites", action="store_true", help="the call sites that cost most as well"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        default = {"rlif-arithmetic": "rlif-arithmetic", "28 layers": deep_model(Path(folder))}
        print(
            f"{'model':16} {'precision':10} {'of one':40} {'launches':>9} {'waits':>7}"
            f" {'uploads':>8}"
        )
        for label, name in ({name: name for name in given.models} or default).items():
            for precision in ("32-true", "bf16-mixed"):
                for what, counts in counted(name, precision, given.decoding).items():
                    figures = f"{counts.launches:9.1f} {counts.waits:7.2f} {counts.uploads:8.2f}"
                    print(f"{label:16} {precision:10} {what:40} {figures}", flush=True)
                    if given.sites:
                        print(*counts.lines(), sep="\n", flush=True)


if __name__ == "__main__":
    main()
