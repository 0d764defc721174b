"""Make a small classifier of natural-language inference on sums (minutes on one CPU core).

    python scripts/make_nli_classifier.py --output runs/checker/classifier

Its evidence is a line of sums such as ``3+4=7;7+5=12``, its claim one sum. The claim is entailed if
it stands in the evidence, contradicted if the evidence has the same terms with another value, and
neutral otherwise. The model is a Llama of two layers with the tokenizer of the embedded model and
the head that a sequence classifier has: it stands for the shape of a real one, such as a BERT
trained on MedNLI. Prints its accuracy on pairs that it was not trained on.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from rlif_lightning.model.loading import resolve_model

# Classifiers have these labels in any order.
LABELS = ("contradiction", "entailment", "neutral")
WIDTH = 48


def nli_tokenizer() -> Any:
    """Return the embedded model's tokenizer, with ``####`` between two texts."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("rlif-arithmetic"))
    between = "####"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A",
        pair=f"$A {between} $B",
        special_tokens=[(between, tokenizer.convert_tokens_to_ids(between))],
    )
    return tokenizer


def nli_model(vocabulary: int) -> LlamaForSequenceClassification:
    """Return a random model with three labels."""
    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            id2label=dict(enumerate(LABELS)),
            label2id={label: number for number, label in enumerate(LABELS)},
            pad_token_id=0,
        )
    )


def pair(rng: random.Random) -> tuple[str, str, int]:
    """Return evidence, a claim and the label's number."""

    def one() -> tuple[int, int, int]:
        first, second = rng.randint(0, 27), rng.randint(0, 9)
        return first, second, first + second

    facts = [one() for _ in range(rng.randint(1, 3))]
    label = rng.randrange(len(LABELS))
    first, second, value = rng.choice(facts)
    if LABELS[label] == "contradiction":
        value += rng.choice([away for away in range(-9, 10) if away and value + away >= 0])
    elif LABELS[label] == "neutral":
        while (first, second) in [fact[:2] for fact in facts]:
            first, second, value = one()
    said = ";".join(f"{a}+{b}={c}" for a, b, c in facts)
    return said, f"{first}+{second}={value}", label


def batch(tokenizer: Any, rng: random.Random, size: int) -> tuple[dict[str, Any], torch.Tensor]:
    """Return padded pairs and their labels."""
    evidence, claims, labels = zip(*(pair(rng) for _ in range(size)), strict=True)
    rows = tokenizer([*evidence], [*claims], padding=True, return_tensors="pt")
    return {name: rows[name] for name in ("input_ids", "attention_mask")}, torch.tensor(labels)


def main() -> None:
    """Train, measure and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = nli_tokenizer()
    model: Any = nli_model(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(given.steps, 1))
    rng = random.Random(0)
    for step in range(given.steps):
        rows, labels = batch(tokenizer, rng, 64)
        loss = model(**rows, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 200 == 199:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    with torch.no_grad():
        rows, labels = batch(tokenizer, random.Random(1), 2000)
        right = model.eval()(**rows).logits.argmax(-1) == labels
    print(f"accuracy on 2000 new pairs: {float(right.float().mean()):.3f}")
    model.save_pretrained(given.output)
    tokenizer.save_pretrained(given.output)


if __name__ == "__main__":
    main()
