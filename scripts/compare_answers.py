"""Compare our answer checking with that of other graders.

    python scripts/compare_answers.py --cases 3000 --out differ.jsonl

The pairs are drawn by kind (``answer_pairs.py``): numbers, fractions, LaTeX, sets, units, words and
others. Each pair is judged by four:

- our ``equivalent``;
- the library math-verify as its documentation uses it (``verify(parse(gold), parse(answer))`` with
  its defaults);
- GSM8K's rule (the number's characters without commas);
- the normalisation that MATH's authors published, restated here from its description.

Pairs on which ours and math-verify differ are written out. Some of them are in
``tests/data/answer_disagreements.jsonl``, with the right verdict.

Sources: https://github.com/huggingface/Math-Verify, https://arxiv.org/abs/2110.14168 (GSM8K),
https://arxiv.org/abs/2103.03874 and https://arxiv.org/abs/2206.14858 (MATH and Minerva: answer
normalisation).
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections import Counter
from pathlib import Path

from answer_pairs import pairs

from rlif_lightning.answers.final_answers import equivalent


def math_verify_says(gold: str, answer: str) -> bool:
    """Return the library's verdict with its own defaults and the gold answer first."""
    from math_verify import parse, verify

    return bool(verify(parse(f"${gold}$"), parse(f"${answer}$")))


def gsm8k_says(gold: str, answer: str) -> bool:
    """Apply GSM8K's published rule: the number's characters without commas are equal."""
    number = re.compile(r"-?[0-9.,]+")
    found = [number.search(text) for text in (gold, answer)]
    return all(found) and len({match[0].replace(",", "") for match in found if match}) == 1


_MATH_RULES = [
    (r"\\!|\\left|\\right|\\\$|\^\{?\\circ\}?|\\?%|\$", ""),
    (r"\\[dt]frac", r"\\frac"),
    (r"\\text\{ .*$", ""),  # units at the end
    (r"\\frac ?(\d)(\d)", r"\\frac{\1}{\2}"),
    (r"\\sqrt(\d)", r"\\sqrt{\1}"),
    (r"(^|[{ ])\.", r"\g<1>0."),
    (r"^[a-z]{1,2} ?= ?", ""),
    (r"^0\.5$", r"\\frac{1}{2}"),
    (r"^(-?\d+)/(\d+)$", r"\\frac{\1}{\2}"),
    (r"\s", ""),
]


def math_says(gold: str, answer: str) -> bool:
    """Apply MATH's published rule: equal after a normalisation of the strings."""

    def normal(text: str) -> str:
        for pattern, replacement in _MATH_RULES:
            text = re.sub(pattern, replacement, text)
        return text

    return normal(gold) == normal(answer)


def main() -> None:
    """Judge, count and write out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=3000, help="pairs (default: 3000)")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs (default: 0)")
    parser.add_argument(
        "--out", type=Path, help="JSON lines of pairs on which ours and math-verify differ"
    )
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    graders = {
        "ours": equivalent,
        "math-verify": math_verify_says,
        "GSM8K": gsm8k_says,
        "MATH": math_says,
    }
    agree, differ = Counter(), []
    cases = pairs(arguments.cases, arguments.seed)
    for pair in cases:
        verdicts = {name: grader(pair.gold, pair.answer) for name, grader in graders.items()}
        agree.update(
            (pair.kind, name) for name, verdict in verdicts.items() if verdict == pair.equal
        )
        agree.update([(pair.kind, "")])
        if verdicts["ours"] != verdicts["math-verify"] or verdicts["ours"] != pair.equal:
            differ.append({**pair._asdict(), **verdicts})
    print(f"{len(cases)} pairs; share of verdicts that are as meant:")
    print(f"{'kind':16}{'pairs':>7}" + "".join(f"{name:>13}" for name in graders))
    for kind in sorted({pair.kind for pair in cases}):
        number = agree[kind, ""]
        print(
            f"{kind:16}{number:7}"
            + "".join(f"{100 * agree[kind, name] / number:12.1f}%" for name in graders)
        )
    print(f"{len(differ)} pairs where ours differs from math-verify or from what was meant")
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(row) + "\n" for row in differ))


if __name__ == "__main__":
    main()
