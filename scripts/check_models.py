"""Check whether this library computes each causal LM's own log-probs: the table of docs/models.md.

For every type in Transformers' causal-LM mapping a small random model is built and compared with
the model's own forward, with model.policy.attention=sdpa and =eager. Every run makes the same
comparison before it trains (``rlif_lightning/rollout/self_check.py``).

    python scripts/check_models.py --write          # writes the table into docs/models.md
    python scripts/check_models.py --check          # exit code 1 if a verdict there has changed
    python scripts/check_models.py granite phi3     # a few types
    python scripts/check_models.py --time           # what the comparison adds to a start
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from page_tables import replaced
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlif_lightning.model.loading import Policy, prepare_model, resolve_model
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.rollout.self_check import check_weights, examine

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- written by scripts/check_models.py -->", "<!-- end -->"
SECONDS = 60  # of the processor, for one type
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 48,
    "long_factor": [4.0] * 48,
}
LONGROPE["original_max_position_embeddings"] = 4096
INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 2048,
}
INDEXER["indexer_compress_ratio"] = 4
# Settings that a type's default configuration lacks: what it cannot be built without, and scalings,
# windows and noise that models of the type have. A name in brackets is a second row of the same
# type.
SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere": {"logit_scale": 0.25},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 8, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {
        "n_routed_experts": 128,
        "num_experts_per_tok": 6,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
    },
    "falcon (alibi)": {"alibi": True},
    "falcon_h1": {"lm_head_multiplier": 0.3, "key_multiplier": 0.5},
    "gemma3_text": {"final_logit_softcapping": 30.0},
    "granite": {"logits_scaling": 8.0, "attention_multiplier": 0.02, "residual_multiplier": 0.2},
    "granitemoe": {"logits_scaling": 8.0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16, "logits_scaling": 8.0},
    "granitemoeshared": {"logits_scaling": 8.0},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "llama (dynamic)": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    },
    "llama (yarn)": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
    "ministral": {"head_dim": 128},
    "mixtral": {"router_jitter_noise": 0.01, "sliding_window": 4096},
    "nemotron": {"num_key_value_heads": 8},
    "phi3": {"sliding_window": 2047},
    "phi3 (longrope)": {"rope_parameters": LONGROPE},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 14},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "starcoder2": {"sliding_window": 4096},
    "xmod": {"default_language": "en_XX"},
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: the type, and a variant in brackets.
        model: its class.
        sdpa, eager: what becomes of it under each setting: works (how) | refused | -.
        why: what was found where it does not work.
    """

    name: str
    model: str
    sdpa: str
    eager: str
    why: str = ""

    @property
    def line(self) -> str:
        """Return the row as Markdown."""
        return f"| {self.name} | {self.model} | {self.sdpa} | {self.eager} | {self.why} |"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("types", nargs="*", help="all if none is named")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--time", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    warnings.simplefilter("ignore")
    if args.time:
        return print_times()
    rows = []
    for name in args.types or names():
        rows.append(examined(name))
        print(rows[-1].line, flush=True)
    print(summary(rows))
    if args.write:
        PAGE.write_text(replaced(PAGE.read_text(), (BEGIN, END), table(rows)))
    if args.check:
        sys.exit(different(rows, PAGE.read_text()))


def names() -> list[str]:
    """Return every type of the mapping, and the variants."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *SETTINGS})


def config_of(name: str) -> PreTrainedConfig:
    """Return the default configuration of a type, with ``SETTINGS``; encoders as decoders."""
    kind, settings = CONFIG_MAPPING[name.split()[0]], dict[str, Any](SETTINGS.get(name, {}))
    config = kind(**settings)
    if not hasattr(config, "is_decoder"):
        return config
    as_decoder: dict[str, Any] = {**settings, "is_decoder": True}
    return kind(**as_decoder)


def examined(name: str) -> Row:
    """Compute the row of a type."""
    try:
        with at_most(SECONDS):
            config = config_of(name)
            sdpa, eager = examine(config, "sdpa"), examine(config, "eager")
    except (TooLong, Exception) as error:  # the last of a default that its own class refuses
        return Row(
            name,
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name.split()[0]],
            "-",
            "-",
            f"not tried: {short(error)}",
        )
    found = [
        ("refused" if v.faults else "prompts shared" if v.shares_prompts else "own code")
        for v in (sdpa, eager)
    ]
    faults = sdpa.faults or eager.faults
    return Row(name, sdpa.model.split()[0], found[0], found[1], "; ".join(map(short, faults)))


class TooLong(BaseException):
    """More time than a type may take; no ``Exception``, which would count as the model's fault."""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise ``TooLong`` inside after so many CPU seconds, however busy the machine is."""

    def stop(*_: Any) -> None:
        raise TooLong(f"more than {seconds} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def short(what: Any) -> str:
    """Return a clause without what differs from machine to machine, for a cell."""
    text = re.sub(r"^model\.policy\.name='[^']*': ", "", " ".join(str(what).split())).replace(
        "|", "/"
    )
    text = re.sub(r" \(limit [^)]*\)", "", re.sub(r"by [\d.e+-]+ nats", "by nats", text))
    return text if len(text) <= 160 else text[:157] + "..."


def summary(rows: list[Row]) -> str:
    """Count the models of each verdict."""
    counts = Counter(verdict(row.sdpa, row.eager) for row in rows)
    parts = [
        f"{counts[kind]} {kind}"
        for kind in ("work", "work under eager only", "refused", "not tried")
    ]
    shared = sum(row.sdpa == "prompts shared" for row in rows)
    return (
        f"{len(rows)} rows: {', '.join(parts)}. Of those that work, {shared} with prompts shared."
    )


def verdict(sdpa: str, eager: str) -> str:
    """Return the verdict of one row."""
    if sdpa == "-":
        return "not tried"
    if sdpa != "refused":
        return "work"
    return "refused" if eager == "refused" else "work under eager only"


def table(rows: list[Row]) -> str:
    """Return the table as Markdown."""
    head = (
        "| type | class | attention=sdpa (default) | attention=eager | what was found |\n"
        + "| --- " * 5
        + "|"
    )
    command = f"`python scripts/check_models.py --write`, transformers {transformers.__version__}"
    return "\n".join([f"{command}: {summary(rows)}\n", head, *(row.line for row in rows)])


def different(rows: list[Row], page: str) -> int:
    """Return 1 if verdicts differ from those of the page, which are printed; else 0."""
    lines = [
        [cell.strip() for cell in line.split("|")[1:5]]
        for line in page.splitlines()
        if line.startswith("| ")
    ]
    known = {cells[0]: cells for cells in lines}
    wrong = [
        row for row in rows if known.get(row.name) != [row.name, row.model, row.sdpa, row.eager]
    ]
    for row in wrong:
        print(f"docs/models.md has {known.get(row.name)}, found {row.line}")
    return int(bool(wrong))


def print_times() -> None:
    """Print the CPU seconds that the check adds to a start, for two models."""
    settings = Policy("rlif-arithmetic")
    shape: dict[str, Any] = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
    }
    large = LlamaConfig(**shape, num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True)
    embedded = AutoConfig.from_pretrained(resolve_model(settings.name))
    for config in (embedded, large):
        start = time.process_time()
        examine(config, "sdpa")
        examined_at = time.process_time()
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        policy = PolicyModel(settings, load=lambda each, made=model: prepare_model(made, each))
        made_at = time.process_time()
        check_weights(policy, settings)
        size, spent = (
            sum(p.numel() for p in policy.parameters()) / 1e6,
            time.process_time() - made_at,
        )
        print(
            f"{size:.1f} million parameters: small copy {examined_at - start:.2f} s, weights"
            f" {spent:.2f} s"
        )


if __name__ == "__main__":
    main()
