"""Draw pairs of a gold answer and an answer by kind, about half of them meant to be equal."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple


class Pair(NamedTuple):
    """A gold answer, an answer, what they are, and whether they were made to be equal."""

    kind: str
    gold: str
    answer: str
    equal: bool


def _spelled(rng: random.Random, n: int) -> str:
    forms = [
        f"{n}",
        f"{n:,}",
        f"{n}.0",
        f"{n}.",
        f"+{n}",
        f"${n}$",
        rf"\text{{{n}}}",
        f"{n} ",
        rf"\boxed{{{n}}}",
    ]
    return rng.choice(forms) if n >= 0 else str(n)


def integer(rng: random.Random) -> Pair:
    """Draw whole numbers in many spellings."""
    n = rng.choice(
        [rng.randrange(20), rng.randrange(10**4), rng.randrange(10**7), -rng.randrange(1, 99)]
    )
    other = n if rng.random() < 0.5 else n + rng.choice([1, -1, 10, 100])
    return Pair("integer", str(n), _spelled(rng, other), other == n)


def decimal(rng: random.Random) -> Pair:
    """Draw decimals, with zeros at either end left out or added."""
    n = rng.randrange(1, 10**4)
    gold, other = f"{n / 1000:.3f}", n if rng.random() < 0.5 else n + 1
    text = f"{other / 1000:.3f}"
    forms = [text, text + "0", text.rstrip("0").rstrip("."), text.lstrip("0") or "0", f"${text}$"]
    return Pair("decimal", gold, rng.choice(forms), other == n)


def fraction(rng: random.Random) -> Pair:
    """Draw fractions in five spellings, reduced or not, and as decimals."""
    a, b = rng.randrange(1, 30), rng.choice([2, 4, 5, 8, 3, 7, 9])
    c = a if rng.random() < 0.5 else a + 1
    k = rng.choice([1, 1, 2, 3])
    form = rng.choice(
        [
            r"\frac{%d}{%d}",
            r"\dfrac{%d}{%d}",
            "%d/%d",
            r"\frac %d%d",
            r"-\frac{-%d}{%d}",
            r"\tfrac{%d}{%d}",
        ]
    )
    answer = form % (c * k, b * k) if rng.random() < 0.8 or b in (3, 7, 9) else str(c / b)
    if form.startswith(r"\frac %") and (c * k > 9 or b * k > 9):
        answer = rf"\frac{{{c * k}}}{{{b * k}}}"
    return Pair("fraction", rf"\frac{{{a}}}{{{b}}}", answer, a == c)


def mixed_number(rng: random.Random) -> Pair:
    """Draw a whole number with a fraction."""
    whole, a, b = rng.randrange(1, 9), rng.randrange(1, 4), rng.choice([4, 5, 7])
    equal = rng.random() < 0.5
    top = whole * b + a if equal else whole * a
    return Pair(
        "mixed number",
        rf"{whole}\frac{{{a}}}{{{b}}}",
        rf"\frac{{{top}}}{{{b}}}",
        top == whole * b + a,
    )


def rounded(rng: random.Random) -> Pair:
    """Draw a fraction or root, and a decimal that is cut after some digits: never equal."""
    a, b = rng.randrange(1, 20), rng.choice([3, 7, 9, 11])
    digits = rng.choice([2, 3, 4, 5, 6])
    exact = (a * 10**digits) % b == 0
    return Pair("rounded", rf"\frac{{{a}}}{{{b}}}", f"{a / b:.{digits}f}", exact)


def unit(rng: random.Random) -> Pair:
    """Draw a number with a unit and the bare number, which published graders count as right."""
    n = rng.randrange(2, 500)
    forms = [
        r"%d\text{ cm}",
        r"%d \text{ inches}",
        r"%d^\circ",
        r"\$%d",
        r"%d\%%",
        "%d apples",
        r"%d\,\mathrm{m}",
        "%d degrees",
    ]
    other = n if rng.random() < 0.5 else n + 1
    return Pair("unit", str(n), rng.choice(forms) % other, other == n)


def percent(rng: random.Random) -> Pair:
    """Draw per cent, the bare number (which graders accept), and the fraction."""
    n = rng.randrange(1, 99)
    other = n if rng.random() < 0.5 else n + 1
    form = rng.choice([str(other), f"{other / 100}", rf"{other}\%", f"{other} percent"])
    return Pair("per cent", rf"{n}\%", form, other == n)


def root(rng: random.Random) -> Pair:
    """Draw square roots, simplified or not."""
    a, b = rng.randrange(2, 9), rng.choice([2, 3, 5, 6, 7])
    equal = rng.random() < 0.5
    inner = a * a * b if equal else a * a * b + 1
    form = rng.choice([rf"\sqrt{{{inner}}}", rf"\sqrt{{{inner}}}", f"sqrt({inner})"])
    return Pair("root", rf"{a}\sqrt{{{b}}}", form, equal)


def constant(rng: random.Random) -> Pair:
    """Draw multiples of pi."""
    a, b = rng.randrange(1, 9), rng.randrange(2, 7)
    c = a if rng.random() < 0.5 else a + 1
    form = rng.choice([r"\frac{%d\pi}{%d}", r"\frac{%d}{%d}\pi", r"%d\pi/%d"])
    return Pair("multiple of pi", rf"\frac{{{a}\pi}}{{{b}}}", form % (c, b), a == c)


def ordered(rng: random.Random) -> Pair:
    """Draw points, whose order counts."""
    a, b = rng.sample(range(-9, 10), 2)
    how = rng.randrange(3)
    answer = [f"({a},{b})", rf"\left( {a}, {b} \right)", f"({b}, {a})"][how]
    return Pair("point", f"({a}, {b})", answer, how < 2)


def unordered(rng: random.Random) -> Pair:
    """Draw sets, whose order does not count."""
    a, b, c = rng.sample(range(1, 20), 3)
    equal = rng.random() < 0.5
    return Pair("set", rf"\{{{a},{b}\}}", rf"\{{{b}, {a if equal else c}\}}", equal)


def listed(rng: random.Random) -> Pair:
    """Draw several answers in a row, as MATH asks for, in any order."""
    a, b, c = rng.sample(range(-9, 20), 3)
    equal = rng.random() < 0.5
    return Pair("list", f"{a}, {b}", f"{b},{a if equal else c}", equal)


def interval(rng: random.Random) -> Pair:
    """Draw intervals, whose open or closed ends count."""
    a, b = sorted(rng.sample(range(-9, 10), 2))
    answer = rng.choice([f"[{a},{b})", f"[{a}, {b}]", f"({a},{b})"])
    return Pair("interval", f"[{a},{b})", answer, answer == f"[{a},{b})")


def equation(rng: random.Random) -> Pair:
    """Draw the value of a variable, and ``x = value``."""
    n = rng.randrange(-20, 50)
    other = n if rng.random() < 0.5 else n + 1
    return Pair(
        "equation",
        str(n),
        rng.choice([f"x={other}", f"x = {other}", f"y={other}", f"m={other}"]),
        other == n,
    )


def polynomial(rng: random.Random) -> Pair:
    """Draw a polynomial, expanded and factored."""
    a, b = rng.randrange(1, 9), rng.randrange(1, 9)
    last = a * b if rng.random() < 0.5 else a * b + 1
    return Pair("polynomial", f"(x+{a})(x+{b})", f"x^2+{a + b}x+{last}", last == a * b)


def word(rng: random.Random) -> Pair:
    """Draw words and letters, none of them products of variables."""
    words = [
        "yes",
        "no",
        "north",
        "thorn",
        "listen",
        "silent",
        "east",
        "seat",
        "Monday",
        "dynamo",
        "even",
        "odd",
        "A",
        "B",
    ]
    gold, answer = rng.choice(words), rng.choice(words)
    if rng.random() < 0.5:
        answer = rng.choice([gold, rf"\text{{{gold}}}", f"{gold}.", f"**{gold}**"])
    equal = gold in answer and len(answer) - len(gold) in (0, 1, 4, 7)
    return Pair("word", gold, answer, equal)


def scientific(rng: random.Random) -> Pair:
    """Draw powers of ten."""
    a, n = rng.randrange(1, 10), rng.randrange(2, 6)
    equal = rng.random() < 0.5
    form = rng.choice([rf"{a} \times 10^{n}", rf"{a}\cdot 10^{{{n}}}", f"{a}e{n}"])
    return Pair("power of ten", str(a * 10 ** (n if equal else n + 1)), form, equal)


KINDS: list[Callable[[random.Random], Pair]] = [
    integer, decimal, fraction, mixed_number, rounded, unit, percent, root, constant, ordered,
    unordered, listed, interval, equation, polynomial, word, scientific,
]  # fmt: skip


def pairs(number: int, seed: int = 0) -> list[Pair]:
    """Draw different pairs, the kinds in turn."""
    rng, found = random.Random(seed), {}
    for turn in range(50 * number):
        pair = KINDS[turn % len(KINDS)](rng)
        found.setdefault((pair.gold, pair.answer), pair)
        if len(found) == number:
            break
    return list(found.values())
