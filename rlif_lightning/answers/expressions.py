r"""Read a mathematical expression, in LaTeX or plain text, into a small tree.

Read in this order: ``parse`` (string -> tree), ``_tokens`` (string -> tokens), ``_Parser``. A tree is a tuple whose first
item names the node: ``("num", Fraction)``, ``("var", name)``, ``("const", "pi")``, or an operation and its arguments.
``values.py`` computes with it. What is not certain to be read as it was meant raises ``Unreadable``.

Left out: sums, integrals, limits, matrices inside expressions, and functions with names of their own.
"""

from __future__ import annotations

import re
from fractions import Fraction

Node = tuple

# Deeper nesting is no answer; the bound keeps recursion far from Python's limit.
_MAX_DEPTH = 40

_FUNCTIONS = {
    *("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp", "log", "ln", "lg"),
    *("arcsin", "arccos", "arctan"),
}
_GREEK = {
    *("alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda"),
    *("mu", "nu", "xi", "rho", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega", "Gamma", "Delta", "Theta"),
    *("Lambda", "Sigma", "Phi", "Psi", "Omega", "ell"),
}
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_OPERATORS = {r"\cdot": "*", r"\times": "*", r"\ast": "*", r"\div": "/", "*": "*", "/": "/"}

_TOKEN = re.compile(
    r"(?P<based>[0-9][0-9A-F]*(?:\.[0-9A-F]+)?_(?:\{\s*(?P<base>[0-9]{1,2}|[a-z]+)\s*\}|(?P<digit>[0-9])))"
    r"|(?P<mixed>[0-9]+ [0-9]+/[0-9]+(?![0-9.]))"
    r"|(?P<repeating>[0-9]*\.[0-9]*\\(?:overline|bar)\s*\{[0-9]+\})"
    r"|(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3}(?![0-9A-Za-z]))?)"
    r"|(?P<command>\\(?:[A-Za-z]+|.))"
    r"|(?P<letters>[A-Za-z]+)"
    r"|(?P<symbol>[-+*/^_(){}\[\]|!°%])"
    r"|(?P<space>\s+)"
)


class Unreadable(Exception):
    """What stands there is no expression that can be read with certainty."""


def parse(text: str) -> Node:
    """The tree of an expression.

    Raises:
        Unreadable: it is not read with certainty.
    """
    parser = _Parser(_tokens(text))
    node = parser.sum()
    if parser.kind:
        raise Unreadable(text)
    return node


def _tokens(text: str) -> list[tuple[str, str | Node]]:
    """(kind, text) of each token; numbers, names and constants come as finished nodes of kind ``atom``."""
    tokens: list[tuple[str, str | Node]] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unreadable(text)
        position = match.end()
        kind = match.lastgroup if match.lastgroup not in ("base", "digit") else "based"
        if kind == "letters":
            tokens += _letters(match[0])
        elif kind == "command":
            tokens.append(_command(match[0][1:]))
        elif kind == "symbol":
            tokens.append((match[0], match[0]))
        elif kind != "space":
            tokens.append(("number", _number(str(kind), match)))
    return tokens


def _number(kind: str, match: re.Match[str]) -> Node:
    text = match[0]
    if kind == "based":
        digits, name = text.split("_")[0].lstrip("0") or "0", match["base"] or match["digit"]
        base = _BASES.get(name) or (int(name) if name.isdigit() else 0)
        if not 2 <= base <= 36 or (base <= 10 and not digits.replace(".", "").isdigit()):
            raise Unreadable(text)
        return ("var", f"{digits}_{base}")  # a numeral stands for itself: neither 1011 nor the same digits elsewhere
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
    if run in _FUNCTIONS:
        return [("function", run)]
    if run in ("sqrt", "frac"):
        return [(run, run)]
    if run == "pi":
        return [("atom", ("const", "pi"))]
    if len(run) == 1 or (len(run) <= 3 and run.islower()):
        return [("atom", ("const", letter) if letter in "ei" else ("var", letter)) for letter in run]
    if run.isupper():
        return [("atom", ("var", run))]  # a segment or a label, not a product
    raise Unreadable(run)


def _command(name: str) -> tuple[str, str | Node]:
    if name == "pi":
        return ("atom", ("const", "pi"))
    if name in _GREEK:
        return ("atom", ("var", name))
    if name in _FUNCTIONS:
        return ("function", name)
    if "\\" + name in _OPERATORS:
        return (_OPERATORS["\\" + name], name)
    if name in ("frac", "sqrt", "binom", "overline", "lfloor", "rfloor", "lceil", "rceil"):
        return (name, name)
    raise Unreadable(name)


class _Parser:
    """Recursive descent over a list of tokens; each method reads one level of precedence."""

    def __init__(self, tokens: list[tuple[str, str | Node]]):
        self.tokens, self.position, self.depth, self.bars = tokens, 0, 0, 0

    @property
    def kind(self) -> str:
        """The kind of the next token; empty at the end."""
        return self.tokens[self.position][0] if self.position < len(self.tokens) else ""

    def take(self, kind: str | None = None) -> str | Node:
        """The next token, which must be of this kind."""
        if not self.kind or (kind is not None and self.kind != kind):
            raise Unreadable(kind)
        self.position += 1
        return self.tokens[self.position - 1][1]

    def sum(self) -> Node:
        """Terms with signs between them."""
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise Unreadable("nested too deeply")
        node = self.product()
        while self.kind in ("+", "-"):
            operation = "add" if self.take() == "+" else "sub"
            node = (operation, node, self.product())
        self.depth -= 1
        return node

    def product(self) -> Node:
        """Factors with a sign between them or none; a sign at the start binds the whole term."""
        if self.kind in ("+", "-"):
            negative = self.take() == "-"
            self.depth += 1
            if self.depth > _MAX_DEPTH:
                raise Unreadable("too many signs")
            node = self.product()
            self.depth -= 1
            return ("neg", node) if negative else node
        node = self.power()
        while True:
            if self.kind in ("*", "/"):
                operation = "mul" if self.take() and self.tokens[self.position - 1][0] == "*" else "div"
                factor = self.product_factor()
                node = (operation, node, factor)
            elif self.starts_factor():
                node = self.beside(node)
            else:
                return node

    def product_factor(self) -> Node:
        """A factor behind a sign of multiplication, which may have a sign of its own."""
        if self.kind in ("+", "-"):
            negative = self.take() == "-"
            return ("neg", self.power()) if negative else self.power()
        return self.power()

    def beside(self, node: Node) -> Node:
        """``node`` times the factor right behind it, or a mixed number."""
        previous, kind = self.tokens[self.position - 1][0], self.kind
        if kind == "number" and previous in ("number", "atom"):
            raise Unreadable("a number behind a factor")
        factor = self.power()
        if (
            kind == "frac"
            and previous == "number"
            and node[0] == "num"
            and _proper(factor)
            and node[1].denominator == 1
        ):
            return ("add", node, factor)
        return ("mul", node, factor)

    def starts_factor(self) -> bool:
        """Whether the next token can begin a factor."""
        if self.kind == "|":
            return not self.bars
        return self.kind in ("number", "atom", "function", "(", "{", "[", "frac", "sqrt", "binom") or (
            self.kind in ("overline", "lfloor", "lceil")
        )

    def power(self) -> Node:
        """A primary with factorials, degree signs and a power."""
        node = self.primary()
        while self.kind in ("^", "!", "°", "%"):
            sign = self.take()
            if sign == "^":
                node = ("pow", node, self.exponent())
            else:
                node = ({"!": "factorial", "°": "degrees", "%": "percent"}[str(sign)], node)
        return node

    def exponent(self) -> Node:
        """What stands behind ``^``: a group, a sign and one primary, or the first digit alone as TeX has it."""
        if self.kind == "-":
            self.take()
            return ("neg", self.primary())
        return self.primary()

    def primary(self) -> Node:
        """A number, a name, a group, a fraction, a root or a function's value."""
        kind = self.kind
        if kind == "number":
            return self.take(kind)  # type: ignore[return-value]
        if kind == "atom":
            return self.subscripted(self.take(kind))  # type: ignore[arg-type]
        if kind in _CLOSERS:
            return self.group(kind)
        if kind == "|":
            return self.absolute()
        if kind == "function":
            return self.function()
        if kind in ("frac", "binom"):
            self.take()
            return ("div" if kind == "frac" else "binom", self.argument(), self.argument())
        if kind == "sqrt":
            return self.root()
        if kind == "overline":
            return self.segment()
        raise Unreadable(kind)

    def group(self, opener: str) -> Node:
        """A sum in brackets."""
        self.take(opener)
        bars, self.bars = self.bars, 0
        node = self.sum()
        self.bars = bars
        self.take(_CLOSERS[opener])
        return (opener[1:], node) if opener in ("lfloor", "lceil") else node

    def absolute(self) -> Node:
        """A sum between bars."""
        self.take("|")
        self.bars += 1
        node = self.sum()
        self.bars -= 1
        self.take("|")
        return ("abs", node)

    def argument(self) -> Node:
        r"""A command's argument: a group, or one character, as in ``\frac13``."""
        if self.kind == "{":
            return self.group("{")
        if self.kind == "number":
            node: Node = self.tokens[self.position][1]  # type: ignore[assignment]
            if node[0] == "num" and node[1].denominator == 1 and node[1] >= 10:
                digits = str(node[1].numerator)
                self.tokens[self.position] = ("number", ("num", Fraction(digits[1:])))
                return ("num", Fraction(digits[0]))
        return self.primary()

    def root(self) -> Node:
        """A square root or the root of a degree in brackets."""
        self.take("sqrt")
        degree: Node = ("num", Fraction(2))
        if self.kind == "[":
            degree = self.group("[")
        radicand = self.group("(") if self.kind == "(" else self.argument()
        return ("root", degree, radicand)

    def segment(self) -> Node:
        r"""``\overline{AB}``: a name in which the order of the letters does not count."""
        self.take("overline")
        node = self.argument()
        if node[0] != "var":
            raise Unreadable("overline")
        return ("var", "segment " + "".join(sorted(node[1])))

    def subscripted(self, node: Node) -> Node:
        """A name with its index, if it has one."""
        if self.kind != "_" or node[0] == "num":
            return node
        self.take("_")
        start = self.position
        self.argument()
        index = "".join(str(token[1]) for token in self.tokens[start : self.position] if token[0] not in "{}")
        return ("var", f"{node[1]}_{index}")

    def function(self) -> Node:
        """A function with its power, its base, and its argument: a group, or factors up to the next sign."""
        name = str(self.take("function"))
        power = base = None
        while self.kind in ("^", "_"):
            if self.take() == "^":
                power = self.exponent()
            else:
                base = self.argument()
        if base is not None and name != "log":
            raise Unreadable(name)
        argument = self.group(self.kind) if self.kind in ("(", "{") else self.factors()
        node: Node = ("call", name, argument) if base is None else ("log", base, argument)
        return node if power is None else ("pow", node, power)

    def factors(self) -> Node:
        """A function's argument without brackets: ``2x`` of ``sin 2x cos x``."""
        node = self.power()
        while self.kind in ("atom", "number", "frac", "sqrt"):
            node = self.beside(node)
        return node


_CLOSERS = {"(": ")", "{": "}", "[": "]", "lfloor": "rfloor", "lceil": "rceil"}


def _proper(node: Node) -> bool:
    """Whether a node is a fraction of two whole numbers between 0 and 1."""
    return (
        node[0] == "div"
        and all(part[0] == "num" and part[1].denominator == 1 for part in node[1:])
        and 0 < node[1][1] < node[2][1]
    )
