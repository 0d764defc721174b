"""The workload of both sides of the speed comparison: flags, model, prompts, lengths, meter.

Nothing here imports either trainer. The model (a random decoder), the word-level tokenizer (each
word ``w17`` is one token) and the prompts are generated, so that no download is needed and both
sides get exactly the same work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")  # ids 0 to 3; every other id i is the word w<i>
NUM_ANSWERS = 4  # of the vote: a completion's answer is its last word's number modulo this
Lengths = list[int]


# Flags of whole numbers: name, default, meaning.
NUMBERS = (
    ("hidden", 256, "model width"),
    ("layers", 4, "decoder layers"),
    ("vocab", 16000, "vocabulary"),
    ("intermediate", 0, "width of the MLP; 0: four times hidden"),
    ("heads", 0, "attention heads; 0: hidden / 64"),
    ("kv-heads", 0, "key heads; 0: as many as heads"),
    ("group-size", 8, "completions per prompt"),
    ("prompts-per-rollout", 4, "prompts per rollout"),
    ("prompt-len", 128, "tokens of each prompt"),
    ("max-new-tokens", 128, "longest completion"),
    ("min-new-tokens", 16, "shortest completion with --lengths random"),
    ("steps", 4, "rollouts"),
    ("warmup", 1, "first steps left out of the medians"),
    ("updates-per-rollout", 1, "optimizer steps per rollout"),
    ("micro-batch", 0, "completions per forward and backward pass; 0: one group"),
    ("max-rows", 0, "completions decoded at a time, ours only; 0: the engine's default"),
    ("threads", 1, "of PyTorch"),
    ("seed", 0, "of everything"),
)


def add_numbers(parser: argparse.ArgumentParser, numbers: Iterable[tuple[str, int, str]]) -> None:
    """Add flags of whole numbers: name, default and meaning of each."""
    for flag, default, text in numbers:
        parser.add_argument(
            f"--{flag}", default=default, type=int, help=f"{text} (default {default})"
        )


def parse_arguments(description: str) -> argparse.Namespace:
    """Parse the workload's flags, which are the same on both sides."""
    parser = argparse.ArgumentParser(description=description)
    add_numbers(parser, NUMBERS)
    parser.add_argument(
        "--lengths", choices=("fixed", "random"), default="fixed", help="of completions"
    )
    parser.add_argument(
        "--accelerator", choices=("cpu", "cuda"), default="cpu", help="ours only: where it runs"
    )
    parser.add_argument(
        "--rewards",
        choices=("python", "rlif"),
        default="python",
        help="two plain ones, or internal",
    )
    parser.add_argument(
        "--beta", type=float, default=0.0, help="weight of the KL to a reference model"
    )
    parser.add_argument("--lr", type=float, default=1e-5, help="learning rate of AdamW")
    parser.add_argument("--tie-embeddings", action="store_true", help="the head is the embedding")
    parser.add_argument(
        "--bf16", action="store_true", help="bfloat16 autocast over float32 weights"
    )
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="recompute activations: less memory"
    )
    parser.add_argument(
        "--cuda-graphs", action="store_true", help="decode by CUDA graphs (this library's side)"
    )
    parser.add_argument("--out", help="also write the JSON here")
    return parser.parse_args()


def plan_lengths(seed: int, rollout: int, count: int, low: int, high: int) -> Lengths:
    """Draw the lengths of ``count`` completions of a rollout, uniform in ``[low, high]``."""
    generator = random.Random(seed * 1_000_003 + rollout)
    return [generator.randint(low, high) for _ in range(count)]


def planned(a: argparse.Namespace, rollout: int) -> Lengths:
    """Return the length of each completion of a rollout, as the flags say."""
    low = a.min_new_tokens if a.lengths == "random" else a.max_new_tokens
    return plan_lengths(
        a.seed, rollout, a.group_size * a.prompts_per_rollout, low, a.max_new_tokens
    )


def make_prompts(a: argparse.Namespace) -> list[str]:
    """Draw one prompt for each group of all steps."""
    generator = random.Random(a.seed)
    words = range(len(SPECIAL), a.vocab)
    return [
        " ".join(f"w{generator.choice(words)}" for _ in range(a.prompt_len))
        for _ in range(a.prompts_per_rollout * a.steps)
    ]


def save_tokenizer(texts: Sequence[str], folder: Path, chat: str | None = None) -> None:
    """Write a word-level tokenizer.

    Args:
        texts: the word of each id, `SPECIAL` first.
        folder: where to.
        chat: template of conversations.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({text: i for i, text in enumerate(texts)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    special = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    if chat is not None:
        tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)


def save_model(a: argparse.Namespace, folder: Path) -> int:
    """Write model and tokenizer as a folder; return the number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    save_tokenizer([*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), a.vocab))], folder)
    torch.manual_seed(a.seed)
    heads = a.heads or max(1, a.hidden // 64)
    config = LlamaConfig(
        vocab_size=a.vocab,
        hidden_size=a.hidden,
        intermediate_size=a.intermediate or 4 * a.hidden,
        num_hidden_layers=a.layers,
        num_attention_heads=heads,
        num_key_value_heads=a.kv_heads or heads,
        max_position_embeddings=max(2048, a.prompt_len + a.max_new_tokens),
        tie_word_embeddings=a.tie_embeddings,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def distinct_share(ids: list[int]) -> float:
    """Return a plain reward: the fraction of distinct tokens."""
    return len(set(ids)) / max(len(ids), 1)


def even_share(ids: list[int]) -> float:
    """Return another plain reward: the fraction of even token ids."""
    return sum(token % 2 == 0 for token in ids) / max(len(ids), 1)


def answer_of(ids: list[int]) -> int:
    """Return the answer that the vote counts."""
    return next((token for token in reversed(ids) if token >= len(SPECIAL)), 0) % NUM_ANSWERS


def vote_scores(completions: list[list[int]], group_size: int) -> list[float]:
    """Return 1 for the group's most frequent answer, else 0."""
    answers, scores = [answer_of(ids) for ids in completions], []
    for start in range(0, len(answers), group_size):
        group = answers[start : start + group_size]
        top = max(set(group), key=lambda answer, g=group: (g.count(answer), -answer))
        scores += [float(answer == top) for answer in group]
    return scores


def memory_mib(field: str) -> float:
    """Return ``VmRSS`` or ``VmHWM`` of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


class Meter:
    """A meter of seconds, CPU seconds and completion tokens of each step, and of peak memory."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.more: dict[str, Any] = {}  # figures that one side alone has

    def start(self) -> None:
        """Start measuring, without the peak memory of loading and importing."""
        Path("/proc/self/clear_refs").write_text("5")
        self.before_mib = memory_mib("VmRSS")
        self.begin_step()

    def begin_step(self) -> None:
        """Start the clocks of a step."""
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def end_step(self, tokens: int, phases: dict[str, float] | None = None) -> None:
        """Stop the clocks of a step; the next may begin at once."""
        seconds, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self.records.append(
            {"seconds": seconds, "cpu_seconds": cpu, "tokens": tokens, "phases": phases or {}}
        )
        self.begin_step()

    def report(
        self, a: argparse.Namespace, framework: str, versions: dict[str, str], parameters: int
    ) -> None:
        """Print the result as one line of JSON, and write it to ``--out``."""
        timed = self.records[a.warmup :]
        seconds = [record["seconds"] for record in timed]
        phases = {
            name: statistics.median(r["phases"][name] for r in timed) for name in timed[0]["phases"]
        }
        result = {
            "framework": framework,
            "versions": versions | {"python": platform.python_version()},
            "config": vars(a) | {"parameters": parameters},
            "seconds_per_step": round(statistics.median(seconds), 4),
            "cpu_seconds_per_step": round(statistics.median(r["cpu_seconds"] for r in timed), 4),
            "completion_tokens_per_second": round(
                sum(r["tokens"] for r in timed) / sum(seconds), 1
            ),
            "completion_tokens_per_step": sum(r["tokens"] for r in timed) / len(timed),
            "peak_rss_mib": round(memory_mib("VmHWM"), 1),
            "rss_before_training_mib": round(self.before_mib, 1),
            "phase_seconds": {name: round(value, 4) for name, value in phases.items()},
            "steps_timed": len(timed),
            **self.more,
        }
        text = json.dumps(result)
        print(text, flush=True)
        if a.out:
            Path(a.out).write_text(text + "\n")
