r"""Cut a mathematical expression into tokens: numbers, names, functions, signs.

Numbers and names are finished nodes of the tree that ``expressions.py`` builds. A numeral with a
base is a name: ``1011_2`` equals neither 1011 nor ``1011_3``. One of base ten is a number.
"""

from __future__ import annotations

import re
from fractions import Fraction

Node = tuple  # of an expression's tree
Key = tuple  # the name of a value, shared exactly by what has the same value

FUNCTIONS = {
    *("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp", "log", "ln", "lg"),
    *("arcsin", "arccos", "arctan"),
}
GREEK = {
    *(
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "varepsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "lambda",
    ),
    *(
        "mu",
        "nu",
        "xi",
        "rho",
        "sigma",
        "tau",
        "phi",
        "varphi",
        "chi",
        "psi",
        "omega",
        "Gamma",
        "Delta",
        "Theta",
    ),
    *("Lambda", "Sigma", "Phi", "Psi", "Omega", "ell"),
}
_BASES = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
}
_OPERATORS = {r"\cdot": "*", r"\times": "*", r"\ast": "*", r"\div": "/", "*": "*", "/": "/"}

_TOKEN = re.compile(
    r"(?P<based>(?:[0-9][0-9A-F]*|[A-F][0-9A-F]+(?=_\{1[1-6]\}))(?:\.[0-9A-F]+)?"
    r"_(?:\{\s*(?P<base>[0-9]{1,2}|[a-z]+)\s*\}|(?P<digit>[0-9])))"
    r"|(?P<mixed>[0-9]+ [0-9]+/[0-9]+(?![0-9.]))"
    r"|(?P<repeating>[0-9]*\.[0-9]*\\(?:overline|bar)\s*\{[0-9]+\})"
    r"|(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3}(?![0-9A-Za-z]))?)"
    r"|(?P<command>\\(?:[A-Za-z]+|.))"
    r"|(?P<letters>[A-Za-z]+)"
    r"|(?P<symbol>[-+*/^_(){}\[\]|!°%])"
    r"|(?P<space>\s+)"
)


class Unreadable(Exception):
    """A text is no expression that can be read with certainty."""


def tokens(text: str) -> list[tuple[str, str | Node]]:
    """Return (kind, text) of each token.

    Numbers, names and constants are nodes of kind ``number`` and ``atom``.

    Raises:
        Unreadable: a character, command or word that is none of these.
    """
    found: list[tuple[str, str | Node]] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unreadable(text)
        position = match.end()
        kind = match.lastgroup if match.lastgroup not in ("base", "digit") else "based"
        if kind == "letters":
            found += _letters(match[0])
        elif kind == "command":
            found.append(_command(match[0][1:]))
        elif kind == "symbol":
            found.append((match[0], match[0]))
        elif kind != "space":
            found.append(("number", _number(str(kind), match)))
    return found


def _number(kind: str, match: re.Match[str]) -> Node:
    text = match[0]
    if kind == "based":
        digits, name = text.split("_")[0].lstrip("0") or "0", match["base"] or match["digit"]
        base = _BASES.get(name) or (int(name) if name.isdigit() else 0)
        if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits.replace(".", "")):
            raise Unreadable(text)
        return ("num", Fraction(digits)) if base == 10 else ("var", f"{digits}_{base}")
    if kind == "mixed":
        whole, part = text.split(" ")
        top, bottom = map(int, part.split("/"))
        if not 0 < top < bottom:
            raise Unreadable(text)
        return ("num", int(whole) + Fraction(top, bottom))
    if kind == "repeating":
        head, _, tail = text.partition("\\")
        cycle = tail[tail.index("{") + 1 : -1]
        decimals = len(head.partition(".")[2])
        start = Fraction(head.strip(".") and Fraction(head if head[-1] != "." else head[:-1]))
        return ("num", start + Fraction(int(cycle), (10 ** len(cycle) - 1) * 10**decimals))
    return ("num", Fraction(text))


def _letters(run: str) -> list[tuple[str, str | Node]]:
    if run in FUNCTIONS:
        return [("function", run)]
    if run in ("sqrt", "frac"):
        return [(run, run)]
    if run == "pi":
        return [("atom", ("const", "pi"))]
    if len(run) == 1 or (len(run) <= 3 and run.islower()):
        return [
            ("atom", ("const", letter) if letter in "ei" else ("var", letter)) for letter in run
        ]
    if run.isupper():
        return [("atom", ("var", run))]  # a segment or a label, not a product
    raise Unreadable(run)


def _command(name: str) -> tuple[str, str | Node]:
    if name == "pi":
        return ("atom", ("const", "pi"))
    if name in GREEK:
        return ("atom", ("var", name))
    if name in FUNCTIONS:
        return ("function", name)
    if "\\" + name in _OPERATORS:
        return (_OPERATORS["\\" + name], name)
    if name in ("frac", "sqrt", "binom", "overline", "lfloor", "rfloor", "lceil", "rceil"):
        return (name, name)
    raise Unreadable(name)
