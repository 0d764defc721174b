"""Feed answer checking with hostile text: ``python scripts/fuzz_answers.py --examples 3000``.

Hypothesis draws texts from pieces of LaTeX, numbers and plain characters, and some pathological
towers and nestings. Every extractor reads each text; the result is normalised and compared with a
harmless answer. The script reports the number of inputs and the largest time of one. An exception,
or a time over a second (the worker is warm), ends the run.
"""

from __future__ import annotations

import argparse
import time

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from rlif_lightning.answers import library, readers
from rlif_lightning.answers.final_answers import AnswerExtractor, equivalent, normalise

KINDS = ("auto", "boxed", "hash", "phrase", "last_number", "text")
PIECES = [
    *"0123456789.,+-*/^=_%$ \\{}()[]<>|!&~'\"abxyzABn\n\t\0\u2212\u221e\u00bd\u0660\u00df\u202e",
    *(
        r"\frac",
        r"\dfrac{1}",
        r"\sqrt",
        r"\boxed{",
        r"\text{",
        r"\left",
        r"\right",
        r"\pi",
        r"\infty",
        r"\cdot",
        r"\times",
    ),
    *(
        r"\sum_{i=1}^{n}",
        r"\int",
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        r"\\",
        r"\log_",
        r"\binom",
        r"\pm",
        r"\in",
        r"\cup",
    ),
    *(
        "####",
        "the answer is ",
        "9^{9^{9",
        "!!!!",
        "1e999",
        "0x",
        "e" * 9,
        "9" * 40,
        "million",
        "3 apples",
    ),
]
NESTED = st.builds(
    lambda piece, n, end: piece * n + "1" + end * n,
    st.sampled_from(PIECES),
    st.integers(1, 120),
    st.sampled_from(["", "}", ")"]),
)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | NESTED | st.text(max_size=80)


def check(text: str, attempts: int = 3) -> float:
    """Return the seconds that one text takes; on a busy machine it is tried again.

    Raises:
        AssertionError: more than one second, each time without remembered verdicts.
    """
    taken = 0.0
    for _ in range(attempts):
        library._verdicts.clear()
        readers._remembered.cache_clear()
        start = time.monotonic()
        for kind in KINDS:
            AnswerExtractor(kind)(text)
        assert normalise(normalise(text)) == normalise(text)
        equivalent(text, r"\frac{x+1}{2}")
        taken = time.monotonic() - start
        if taken < 1.0:
            return taken
    raise AssertionError(f"{taken:.2f} s for {text!r}")


def main() -> None:
    """Fuzz and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=3000, help="texts (default: 3000)")
    parser.add_argument("--seed", type=int, default=0, help="of the texts (default: 0)")
    arguments = parser.parse_args()
    equivalent("x+1", "1+x")  # starts the worker
    times = []

    @seed(arguments.seed)
    @settings(
        max_examples=arguments.examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(TEXTS)
    def feed(text: str) -> None:
        times.append(check(text))

    feed()
    slowest, median = max(times), sorted(times)[len(times) // 2]
    print(
        f"{len(times)} texts; none raised; the slowest took {slowest:.3f} s, the median"
        f" {median:.5f} s"
    )


if __name__ == "__main__":
    main()
