"""Final answers: extraction, normal form, equivalence, clusters."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlif_lightning.answers import library
from rlif_lightning.answers.final_answers import (
    AnswerExtractor,
    cluster,
    equivalent,
    normalise,
    open_clusters,
)

ANSWERISH = st.text(alphabet="0123456789.,+-*/^=%$ \\{}()[]_`abXY°\u2212ßtextrmfcdl\n", max_size=40)


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("boxed", r"so \boxed{\frac{1}{2}} or rather \boxed{\{1, \{2\}\}}.", r"\{1, \{2\}\}"),
        ("boxed", r"first \fbox{7}, then cut off: \boxed{8", "7"),
        ("boxed", r"} stray, \boxed{\boxed{3}}, empty \boxed{ }", "3"),
        ("boxed", "no box, {5}", None),
        ("hash", "a #### 3\nb #### 1,234 dollars \nc", "1,234 dollars"),
        ("hash", "#### ", None),
        ("phrase", "The answer is 3.5. So the final answer is: **42**. Done.", "42"),
        ("phrase", "Answer: x = 3.25", "x = 3.25"),
        ("phrase", "the answers are many", None),
        ("tag", "<answer>1</answer> no, <answer>\n2 <answer> 3\n</answer>", "3"),
        ("tag", "<answer>1", None),
        ("last_number", "from 3 to -1,234.50 dollars", "-1,234.50"),
        ("last_number", "10-3 = 5-3", "3"),
        ("last_number", r"1/2, then \frac{-3}{4}.", r"\frac{-3}{4}"),
        ("last_number", "so 3/4.", "3/4"),
        ("last_number", "pi is 3,1415", "1415"),
        ("last_number", "none", None),
        ("last_number", "a loss: -$5.50", "-$5.50"),
        ("last_number", r"so -\$1,234", r"-\$1,234"),
        ("last_number", "5-$3 is left", "3"),
        ("last_number", r"so $12{,}345$ in all", r"12{,}345"),
        ("last_number", r"so -1\,234\,567.5 in all", r"-1\,234\,567.5"),
        ("last_number", "so 1 000 000 in all", "1 000 000"),
        ("last_number", "from 5 to -12 045 300.5", "-12 045 300.5"),
        ("last_number", "sorted: 100 200 300", "300"),
        ("last_number", "in 2024 007 was shown", "007"),
        ("last_number", "so 1\u202f000\xa0000 in all", "1\u202f000\xa0000"),
        ("text", "  Paris \n", "Paris"),
        ("text", " \n", None),
        ("auto", r"#### 2 and \boxed{1}", "1"),
        ("auto", "The answer is 3.\n#### 2", "2"),
        ("auto", "The answer is 3. I am 99% sure", "3"),
        ("auto", "7 + 5 = 12.", "12"),
        ("auto", "", None),
        ("auto", r"\boxed{$$} 4", None),
    ],
)
def test_extractor(kind, text, answer):
    assert AnswerExtractor(kind)(text) == answer


def test_extractor_regex_takes_the_last_match():
    extractor = AnswerExtractor("regex", r"<a>(.*?)</a>")
    assert extractor("<a>1</a> <a> 2 </a>") == "2"
    assert extractor("none") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("best",), "choose one of .*boxed"),
        (("regex",), "pattern=None"),
        (("boxed", "(x)"), "kind='regex' only"),
        (("regex", "(x"), "not a regular expression"),
        (("regex", "x"), "has 0 groups"),
        (("regex", "(x)(y)"), "has 2 groups"),
    ],
)
def test_extractor_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        AnswerExtractor(*arguments)


@pytest.mark.parametrize(
    "unit",
    [r"\boxed{", "answer is ", "*", "answer: *", "####", "1", "1,", " ", "-", r"\frac{1", "}"],
)
@pytest.mark.parametrize("kind", ["boxed", "hash", "phrase", "last_number", "auto"])
def test_extractor_is_linear(kind, unit):
    start = time.process_time()
    AnswerExtractor(kind)("answer: " + unit * (100_000 // len(unit)) + "x")
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        (" $+1,050.00$. ", "1050"),
        (r"\$1{,}000", r"\$1000"),
        ("007", "7"),
        ("-0.0", "0"),
        ("-.50", "-0.5"),
        ("\u22123", "-3"),
        (r"50\%", "50%"),
        (r"90^{\circ}", "90°"),
        (r"90 ^\circ", "90°"),
        (r"f \circ g", r"f \circ g"),
        (r"\left( \dfrac{1}{2} , 3 \right)", r"(\frac{1}{2},3)"),
        (r"x \leftarrow y", r"x \leftarrow y"),
        (r"\text{\textbf{Paris}}", "paris"),
        ("**Yes**", "yes"),
        ('"Yes."', "yes"),
        ("Option (B)", "B"),
        ("option B", "B"),
        ("choice ( c )", "C"),
        ("C)", "C"),
        ("x)", "x)"),
        ("\u201c12\u201d", "12"),
        ("'B'", "B"),
        ('"a", "b"', '"a", "b"'),
        ("5'10\"", "5'10\""),
        ("X", "X"),
        ("2 X", "2 X"),
        (r"\( x + 1 \)", "x+1"),
        (r"1 & 2 \\ 3 & 4", r"1 & 2 \\ 3 & 4"),
        ("(1,200)", "(1,200)"),
        ("12 apples", "12 apples"),
        ("a  " * 200, " ".join(["a"] * 200)),
        ("Cafe\u0301", "caf\u00e9"),
        ("=\u03383", r"\ne 3"),
    ],
)
def test_normalise(answer, normal):
    assert normalise(answer) == normal


@settings(deadline=None)
@given(ANSWERISH | st.text(max_size=300))
@example("\u0390" * 250)
def test_normalise_is_idempotent(answer):
    assert normalise(normalise(answer)) == normalise(answer)


@settings(deadline=None)
@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9
    )
)
def test_normalise_keeps_the_value_of_a_number(number):
    assert float(normalise(f"{number:+,f}")) == float(number)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("1/2", "0.5", True),
        ("1/2", r"\frac{2}{4}", True),
        (r"-\frac{1}{2}", r"\frac{-1}{2}", True),
        ("1/3", "333333/1000000", False),
        ("1e3", "1000", True),
        ("1/0", "1/0 ", True),
        ("6/3", "2", True),
        ("7/3", "2", False),
        ("0.3333330", "0.3333333", False),
        ("9" * 200, "9" * 199 + "8", False),
        ("listen", "silent", False),
        ("Yes", "yes.", True),
        ("A", "B", False),
        ("50%", "0.5", True),
        ("10-20", "20-30", False),
        ("10\u201320 minutes", "20\u201330 minutes", False),
        ("10-20 minutes", "10 - 20 minutes", True),
        ("$10-20", "$20-30", False),
        ("3-2", "4-3", False),
        ("5-3", "2", True),
        ("5-3 km", "2 km", True),
        ("2020-05-06", "2020-06-05", False),
        ("2020-05-06", "2009", False),
        ("4/2/2020", "2/1/2020", False),
        ("3" * 100_000, "3" * 99_999, False),
        ("x" * 100_000, " " + "x" * 100_000, True),
    ],
)
def test_equivalent_without_the_library(a, b, same, monkeypatch):
    monkeypatch.setattr(
        library, "ask", lambda strings: pytest.fail(f"math-verify was asked about {strings}")
    )
    library._verdicts.clear()
    assert equivalent(a, b) is same
    assert equivalent(b, a) is same


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("x=3", "3", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        (r"\sqrt{8}", r"\sqrt{7.9}", False),
        ("(x+1)^2", "x^2+2x+1", True),
        ("x-y", "-y+x", True),
        ("12 apples", "12", True),
        (r"3\frac12", "3.5", True),
        ("(1,2)", "(2,1)", False),
        ("0.333333", "1/3", False),
        ("0.3333", "1/3", False),
        ("3 or 4", "4", False),
        ("(A) 3, (B) 5", "(A) 4, (B) 6", False),
        ("A: 3, B: 5", "A", False),
        ("(A) and (C)", "A", False),
        ("(A) and (C)", "C, A", True),
        ("(A) or (B)", "(A)", False),
        ("(A) and so on", "A", True),
        ("option (B) 42", "B", True),
        ("Option B: 42", "(B)", True),
        ("option (B) 42", "A", False),
        ("1/0", "2/0", False),
        ("3 to 5", "5 to 3", False),
        ("5 minus 3", "3 minus 5", False),
        ("3 out of 5", r"5\text{ out of }3", False),
        ("4 per 3", "3 per 4", False),
        ("1 yd 2 ft", "2 yd 1 ft", False),
        ("5 R 2", "2 R 5", False),
        ("5C2", "2C5", False),
        ("0.0.1.2", "0.0.2.1", False),
        ("3 x 5", "5 x 3", True),
        (r"\frac{1}{", r"\frac{1}", False),
        ("x<3", r"(-\infty,3)", True),  # the library says True one way round only
    ],
)
def test_equivalent_with_the_library(a, b, same):
    assert equivalent(a, b) is same
    assert equivalent(b, a) is same


@settings(max_examples=25, deadline=None)
@given(ANSWERISH, ANSWERISH)
def test_equivalent_never_raises_and_is_symmetric(a, b):
    assert equivalent(a, b) is equivalent(b, a)
    assert equivalent(a, a)


def test_cluster_numbers_by_frequency_then_alphabet():
    assert cluster(["5", "3", None, "3.0"]) == [1, 0, None, 0]
    assert cluster(["7", "10", "apple"]) == [1, 0, 2]
    assert cluster([None, None]) == [None, None]
    assert cluster([]) == []
    assert cluster(["\\frac{1}{2}", "0.5", "0.50", "2"]) == [0, 0, 0, 1]


def test_rounding_counts_in_evaluation_alone_and_only_if_asked_for():
    """22/7 is not 3.142857, though math-verify says so; in a vote a decimal equals a fraction only
    if exactly.
    """
    for fraction, decimal in [("22/7", "3.142857"), ("1/3", "0.333333"), (r"\sqrt{2}", "1.414214")]:
        assert not equivalent(fraction, decimal)
        assert equivalent(fraction, decimal, "math_verify")
        assert equivalent(decimal, fraction, "math_verify")
        assert cluster([fraction, decimal]) != [0, 0]
    assert not equivalent("22/7", "3.1428", "math_verify")
    with pytest.raises(ValueError, match=r"equivalence='loose'.*math_verify"):
        equivalent("1", "1", "loose")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["1/3", "0.333333", "0.3333334", "3", "3.0", r"\sqrt{9}", "x=3", None, "4"]
        ),
        max_size=8,
    ),
    st.integers(0, 1000),
)
def test_cluster_does_not_depend_on_row_order(group, seed):
    order = list(range(len(group)))
    random.Random(seed).shuffle(order)
    ids, shuffled = cluster(group), cluster([group[i] for i in order])
    assert shuffled == [ids[i] for i in order]


def test_open_clusters_gives_the_most_frequent_string_of_each_cluster():
    ids, representatives = open_clusters(["0.5", "1/2", "1/2", "4"])
    assert (ids, representatives) == ([0, 0, 0, 1], ["1/2", "4"])


def test_importing_answers_loads_no_computer_algebra():
    code = (
        "import sys; from rlif_lightning.answers.final_answers import equivalent; assert"
        " equivalent('1/2', '0.50');"
        "sys.exit('sympy' in sys.modules or 'math_verify' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
