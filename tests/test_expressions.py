"""Expressions: what is read and what is not, values by hand, and sums and products against Python's
own arithmetic.
"""

from __future__ import annotations

import time
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlif_lightning.answers.expression_tokens import Unreadable
from rlif_lightning.answers.expressions import parse
from rlif_lightning.answers.values import evaluate, letters, ratio_key, value_key


def number(text: str) -> Fraction:
    """The exact value of a constant."""
    key = value_key(parse(text))
    assert key[0] == "value"
    assert len(key) == 2
    return key[1]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+3*4", Fraction(14)),
        ("2-3-4", Fraction(-5)),
        ("12/3/2", Fraction(2)),
        ("-2^2", Fraction(-4)),
        ("2^{-2}", Fraction(1, 4)),
        ("2^{3^2}", Fraction(512)),
        (r"\frac12", Fraction(1, 2)),
        (r"\frac123", Fraction(3, 2)),  # TeX: one half times three
        (r"3\frac{1}{4}", Fraction(13, 4)),
        (r"3\frac{5}{4}", Fraction(15, 4)),  # no mixed number: three times five quarters
        ("3 1/4", Fraction(13, 4)),
        (r"0.\overline{3}", Fraction(1, 3)),
        (r"1.2\overline{34}", Fraction(611, 495)),
        ("1.5e3", Fraction(1500)),
        (r"\sqrt{\frac{4}{9}}", Fraction(2, 3)),
        (r"\sqrt2\sqrt{8}", Fraction(4)),
        (r"\sqrt[3]{-27}", Fraction(-3)),
        ("4^{1/2}", Fraction(2)),
        ("5!", Fraction(120)),
        (r"\binom{7}{3}", Fraction(35)),
        ("|2-5|", Fraction(3)),
        (r"\lfloor -2.5 \rfloor", Fraction(-3)),
        (r"\lceil \pi \rceil", Fraction(4)),
        (r"\log_2 8", Fraction(3)),
        (r"\log 1000", Fraction(3)),
        (r"\sin^2 30°+\cos^2 30°", Fraction(1)),
        (r"e^{i\pi}", Fraction(-1)),
        (r"\frac{6}{\pi}\sin^{-1}(\frac12)", Fraction(1)),
        (r"\tan \frac{\pi}{4}", Fraction(1)),
    ],
)
def test_values_by_hand(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2+",
        "(2",
        "2)",
        "3 4",
        "x 4",
        "1/0",
        "0^{-1}",
        "9!!",
        "five",
        r"\int x",
        r"\tan 90°",
        "9^{9^{9}}",
        "2^{5000}+1",
        "2^3^2",
        "(" * 90 + "1" + ")" * 90,
        "-" * 90 + "1",
        r"\log 0",
        r"\ln^{-1} 2",
        "12_2",
        "10001!",
        "2 5/3",
        r"\sqrt[x]{2}",
    ],
)
def test_what_is_not_certain_is_unreadable(text):
    with pytest.raises(Unreadable):
        value_key(parse(text))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("3t+2s", {"t", "s"}),
        (r"\theta+x_{12}", {"theta", "x_12"}),
        ("AB+C", {"AB", "C"}),
        (r"\overline{BA}", {"segment AB"}),
        ("2ab", {"a", "b"}),
        ("1011_2", {"1011_2"}),
        (r"e^{i\pi}", set()),
    ],
)
def test_letters(text, names):
    assert letters(parse(text)) == names


TERMS = st.recursive(
    st.integers(0, 30).map(str) | st.sampled_from(["x", "y"]),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda t: f"({t[0]}{t[1]}{t[2]})"
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(TERMS)
def test_values_at_a_point_are_pythons(text):
    """An independent restatement: the same text, computed by Python with the letters' values put
    in.
    """
    for point in ("positive", "negative"):
        x, y = (evaluate(("var", name), point) for name in "xy")
        wanted = eval(text, {"__builtins__": {}}, {"x": x, "y": y})
        assert evaluate(parse(text), point) == wanted


@settings(deadline=None)
@given(TERMS, TERMS)
def test_order_and_brackets_do_not_matter(a, b):
    assert value_key(parse(f"{a}+{b}")) == value_key(parse(f"{b}+{a}"))
    assert value_key(parse(rf"{a}\cdot {b}")) == value_key(parse(f"({b}){a}"))


@settings(deadline=None)
@given(TERMS)
def test_one_more_is_another_value(a):
    assert value_key(parse(a)) != value_key(parse(f"{a}+1"))


def test_an_equation_is_known_up_to_a_factor():
    assert ratio_key(parse("2x-4y")) == ratio_key(parse("6y-3x"))
    assert ratio_key(parse("2x-4y"), positive=True) != ratio_key(parse("6y-3x"), positive=True)
    assert ratio_key(parse("2x-4y")) != ratio_key(parse("2x+4y"))
    with pytest.raises(Unreadable):
        ratio_key(parse("3-3"))


@pytest.mark.parametrize(
    "text",
    [
        "9^" * 60 + "9",
        "2^{" * 38 + "2" + "}" * 38,
        "+".join(["500!"] * 40),
        r"\sqrt{" * 35 + "2" + "}" * 35,
        "x^" * 30 + "x",
    ],
)
def test_time_is_bounded_by_the_length(text):
    start = time.process_time()
    with suppress(Unreadable):
        value_key(parse(text))
    assert time.process_time() - start < 1.0
