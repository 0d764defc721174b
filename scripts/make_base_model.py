"""Make the small base model of the quickstart (about 3 minutes on one CPU core).

    python scripts/make_base_model.py

A Llama of about 0.4 million parameters learns to add from worked solutions of simulated pupils who
make mistakes. Each pupil writes in one of four styles, all ending in ``####12``. Each number that a
pupil computes is replaced by a number nearby with the style's own probability. So a single sampled
solution is right about half of the time, while wrong answers differ from each other, and most of a
group of solutions agree on the right sum. In this situation a model can learn from its own answers.
Problems of the validation split are never trained on.

Read in this order: the pupils (``STYLES``, ``write_solution``), the tokenizer, training,
evaluation, ``main``. The same seed and versions give the same model.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from word_tokenizers import word_tokenizer

from rlif_lightning.data.prompts import ArithmeticProblems

ANSWER_MARK = "####"
LARGEST_SLIP = 9
CAREFUL = 0.4
MIN_TERMS, MAX_TERMS = 3, 4
MAX_NEW_TOKENS = 48
DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "rlif_lightning" / "assets" / "base_model"

Add = Callable[[int, int], int]


def _running(terms: list[int], add: Add) -> tuple[list[str], int]:
    total, lines = terms[0], []
    for term in terms[1:]:
        result = add(total, term)
        lines.append(f"{total}+{term}={result}")
        total = result
    return lines, total


def _steps(terms: list[int], add: Add) -> tuple[str, int]:
    lines, total = _running(terms, add)
    return ";".join(lines), total


def _backwards(terms: list[int], add: Add) -> tuple[str, int]:
    return _steps(terms[::-1], add)


def _total(terms: list[int], add: Add) -> int:
    """Compute the sum in one go, with one chance to slip."""
    return add(sum(terms[:-1]), terms[-1])


def _copy(terms: list[int], add: Add) -> tuple[str, int]:
    total = _total(terms, add)
    return "+".join(map(str, terms)) + f"={total}", total


def _direct(terms: list[int], add: Add) -> tuple[str, int]:
    return "", _total(terms, add)


@dataclass(frozen=True)
class Style:
    """The way in which some pupils write.

    Attributes:
        share: fraction of the pupils who write like this.
        slip_rate: probability that a number they work out is wrong.
        work: (terms, how to add two numbers) -> (the text before the answer mark, the answer).
    """

    share: float
    slip_rate: float
    work: Callable[[list[int], Add], tuple[str, int]]


STYLES = {
    "steps": Style(0.45, 0.08, _steps),
    "backwards": Style(0.15, 0.12, _backwards),
    "copy": Style(0.15, 0.50, _copy),
    "direct": Style(0.25, 0.50, _direct),
}


def slip(value: int, rng: random.Random) -> int:
    """Draw a number near ``value``: at most 9 away, not negative, all equally likely."""
    nearby = [value + offset for offset in range(-LARGEST_SLIP, LARGEST_SLIP + 1) if offset]
    return rng.choice([number for number in nearby if number >= 0])


def write_solution(question: str, style: Style, rng: random.Random) -> str:
    """Write one pupil's solution of a sum.

    Args:
        question: the problem's text, for example "3+4+5=".
        style: how the pupil writes.
        rng: decides about the slips.

    Returns:
        The text after the question, for example "3+4=7;7+5=12####12".
    """

    def add(a: int, b: int) -> int:
        return slip(a + b, rng) if rng.random() < style.slip_rate else a + b

    work, answer = style.work([int(term) for term in question.rstrip("=").split("+")], add)
    return f"{work}{ANSWER_MARK}{answer}"


def make_examples(
    source: ArithmeticProblems, seed: int, careful: float = CAREFUL
) -> list[tuple[str, str]]:
    """Return a (question, solution) pair for each training problem of ``source``.

    The first ``careful`` (a fraction) of them have no slips: the model learns to add first, and
    only then, from the rest, how often its pupils fail. Sloppy examples alone take several times as
    long.
    """
    rng = random.Random(seed)
    questions = list(source.load("train")["question"])
    styles = rng.choices(
        list(STYLES.values()), [style.share for style in STYLES.values()], k=len(questions)
    )
    num_careful = round(careful * len(questions))
    styles[:num_careful] = [replace(style, slip_rate=0.0) for style in styles[:num_careful]]
    return [
        (question, write_solution(question, style, rng))
        for question, style in zip(questions, styles, strict=True)
    ]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer of 121 tokens: numbers up to 99, operators, the answer mark."""
    numbers = [str(number) for number in range(100)] + [f"0{digit}" for digit in range(10)]
    words = [*numbers, "+", "-", "*", "=", ";", " ", ANSWER_MARK]
    return word_tokenizer(words, f"{ANSWER_MARK}|[0-9]{{1,2}}|.")


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build a Llama with random weights for ``tokenizer``."""
    ids = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.05,  # the usual 0.02 is for wide models and learns far more slowly here
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, max_new_tokens=MAX_NEW_TOKENS, **ids)
    return model


def make_batches(
    examples: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield right-padded ``(token ids [B, T], labels [B, T])``; labels are -100 outside answers."""
    for start in range(0, len(examples), batch_size):
        rows = []
        for question, solution in examples[start : start + batch_size]:
            prompt, rest = (
                tokenizer(text, add_special_tokens=False).input_ids for text in (question, solution)
            )
            rest = [*rest, tokenizer.eos_token_id]
            rows.append((torch.tensor(prompt + rest), torch.tensor([-100] * len(prompt) + rest)))
        ids, labels = [row[0] for row in rows], [row[1] for row in rows]
        yield (
            torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=0),  # 0 is <pad>
            torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
        )


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    examples: list[tuple[str, str]],
    batch_size: int,
    learning_rate: float,
) -> None:
    """Train one epoch on ``examples``: AdamW, one-cycle learning rate, gradient norm at most 1."""
    num_steps = -(-len(examples) // batch_size)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=num_steps, pct_start=0.1
    )
    bar = tqdm(
        make_batches(examples, tokenizer, batch_size), total=num_steps, desc="training", unit="step"
    )
    model.train()
    for ids, labels in bar:
        logits = model(input_ids=ids).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()


@torch.no_grad()
def sample(
    model, tokenizer: PreTrainedTokenizerFast, questions: list[str], num_samples: int
) -> list[list[str]]:
    """Draw ``num_samples`` completions at temperature 1 per question, without special tokens."""
    batch = tokenizer(questions, return_tensors="pt", padding=True, add_special_tokens=False)
    out = model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        do_sample=True,
        top_k=0,
        num_return_sequences=num_samples,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    texts = tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return [texts[i : i + num_samples] for i in range(0, len(texts), num_samples)]


def evaluate(
    model, tokenizer, source: ArithmeticProblems, num_samples: int = 8
) -> dict[str, float]:
    """Return sampled accuracy, majority accuracy and the parseable fraction on validation."""
    problems = source.load("validation")
    groups = sample(model, tokenizer, list(problems["question"]), num_samples)
    answers = [[text.partition(ANSWER_MARK)[2] for text in group] for group in groups]
    right = sum(group.count(gold) for group, gold in zip(answers, problems["answer"], strict=True))
    votes = [Counter(filter(None, group)).most_common(1) for group in answers]
    majority = sum(
        bool(vote) and vote[0][0] == gold
        for vote, gold in zip(votes, problems["answer"], strict=True)
    )
    total = len(groups) * num_samples
    return {
        "sampled accuracy": right / total,
        f"majority-of-{num_samples} accuracy": majority / len(groups),
        "parseable": sum(bool(answer) for group in answers for answer in group) / total,
    }


def main() -> None:
    """Train, evaluate and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help="folder to write (default: %(default)s)"
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=64_000,
        help="worked solutions to learn from (at least 1,000)",
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    source = ArithmeticProblems(MIN_TERMS, MAX_TERMS, size=args.examples, seed=args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, vocabulary of {len(tokenizer)}")
    start = time.perf_counter()
    train(model, tokenizer, make_examples(source, args.seed), args.batch_size, args.learning_rate)
    print(f"trained in {time.perf_counter() - start:.0f} s")
    for name, value in evaluate(model, tokenizer, source).items():
        print(f"{name:24} {value:.3f}")
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    print(f"saved to {args.output}")


if __name__ == "__main__":
    main()
