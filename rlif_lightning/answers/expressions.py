r"""Read a mathematical expression, in LaTeX or plain text, into a small tree.

Read in this order: ``parse`` (string -> tree), then ``_Parser`` from sums down to one factor. A
tree is a tuple whose first item names the node: ``("num", Fraction)``, ``("var", name)``,
``("const", "pi")``, or an operation and its arguments. ``values.py`` computes with it. What is not
certain to be read as it was meant raises ``Unreadable``.

Left out: sums, integrals, limits, matrices inside expressions, and functions with names of their
own.
"""

from __future__ import annotations

from fractions import Fraction

from rlif_lightning.answers.expression_tokens import FUNCTIONS, Node, Unreadable, tokens

# Deeper nesting is no answer. The bound keeps recursion far from Python's limit.
_MAX_DEPTH = 40


def parse(text: str) -> Node:
    """Return the tree of an expression.

    Raises:
        Unreadable: it is not read with certainty.
    """
    parser = _Parser(tokens(text))
    node = parser.sum()
    if parser.kind:
        raise Unreadable(text)
    return node


class _Parser:
    """Recursive descent over a list of tokens; each method reads one level of precedence."""

    def __init__(self, tokens: list[tuple[str, str | Node]]):
        self.tokens, self.position, self.depth, self.bars = tokens, 0, 0, 0

    @property
    def kind(self) -> str:
        """The kind of the next token; empty at the end."""
        return self.tokens[self.position][0] if self.position < len(self.tokens) else ""

    def take(self, kind: str | None = None) -> str | Node:
        """Take the next token, which must be of this kind."""
        if not self.kind or (kind is not None and self.kind != kind):
            raise Unreadable(kind)
        self.position += 1
        return self.tokens[self.position - 1][1]

    def sum(self) -> Node:
        """Read terms with signs between them."""
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
        """Read factors with or without signs between them; a first sign binds the whole term."""
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
                operation = (
                    "mul" if self.take() and self.tokens[self.position - 1][0] == "*" else "div"
                )
                factor = self.product_factor()
                node = (operation, node, factor)
            elif self.starts_factor():
                node = self.beside(node)
            else:
                return node

    def product_factor(self) -> Node:
        """Read a factor behind a multiplication sign; it may have a sign of its own."""
        if self.kind in ("+", "-"):
            negative = self.take() == "-"
            return ("neg", self.power()) if negative else self.power()
        return self.power()

    def beside(self, node: Node) -> Node:
        """Multiply ``node`` by the factor right behind it, or read a mixed number."""
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
        """Return whether the next token can begin a factor."""
        if self.kind == "|":
            return not self.bars
        return self.kind in (
            "number",
            "atom",
            "function",
            "(",
            "{",
            "[",
            "frac",
            "sqrt",
            "binom",
        ) or (self.kind in ("overline", "lfloor", "lceil"))

    def power(self) -> Node:
        """Read a primary with factorials, degree signs and a power."""
        node = self.primary()
        while self.kind in ("^", "!", "°", "%"):
            sign = self.take()
            if sign == "!" and self.kind == "!":
                raise Unreadable("a double factorial")
            if sign == "^":
                node = ("pow", node, self.exponent())
                if self.kind == "^":
                    raise Unreadable("2^3^2, which is read in two ways")
            else:
                node = ({"!": "factorial", "°": "degrees", "%": "percent"}[str(sign)], node)
        return node

    def exponent(self) -> Node:
        """Read what is behind ``^``: a group, a sign and one primary, or the first digit alone.

        The first digit alone is TeX's rule.
        """
        if self.kind == "-":
            self.take()
            return ("neg", self.primary())
        return self.primary()

    def primary(self) -> Node:
        """Read a number, a name, a group, a fraction, a root or a function's value."""
        kind = self.kind
        if kind == "number":
            return self.take(kind)  # type: ignore[return-value]
        if kind == "atom":
            return self.subscripted(self.take(kind))  # type: ignore[arg-type]
        if kind in _CLOSERS:
            return self.group(kind)
        if kind in ("frac", "binom"):
            self.take()
            return ("div" if kind == "frac" else "binom", self.argument(), self.argument())
        readers = {
            "|": self.absolute,
            "function": self.function,
            "sqrt": self.root,
            "overline": self.segment,
        }
        if kind not in readers:
            raise Unreadable(kind)
        return readers[kind]()

    def group(self, opener: str) -> Node:
        """Read a sum in brackets."""
        self.take(opener)
        bars, self.bars = self.bars, 0
        node = self.sum()
        self.bars = bars
        self.take(_CLOSERS[opener])
        return (opener[1:], node) if opener in ("lfloor", "lceil") else node

    def absolute(self) -> Node:
        """Read a sum between bars."""
        self.take("|")
        self.bars += 1
        node = self.sum()
        self.bars -= 1
        self.take("|")
        return ("abs", node)

    def argument(self) -> Node:
        r"""Read a command's argument: a group, or one character, as in ``\frac13``."""
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
        """Read a square root, or the root of a degree in brackets."""
        self.take("sqrt")
        degree: Node = ("num", Fraction(2))
        if self.kind == "[":
            degree = self.group("[")
        radicand = self.group("(") if self.kind == "(" else self.argument()
        return ("root", degree, radicand)

    def segment(self) -> Node:
        r"""Read ``\overline{AB}``: a name in which the order of the letters does not count."""
        self.take("overline")
        node = self.argument()
        if node[0] != "var":
            raise Unreadable("overline")
        return ("var", "segment " + "".join(sorted(node[1])))

    def subscripted(self, node: Node) -> Node:
        """Read a name with its index, if it has one."""
        if self.kind != "_" or node[0] == "num":
            return node
        self.take("_")
        start = self.position
        self.argument()
        index = "".join(_spelled(token) for _, token in self.tokens[start : self.position])
        return ("var", f"{node[1]}_{index}")

    def function(self) -> Node:
        """Read a function with its power, its base and its argument.

        The argument is a group, or factors up to the next sign.
        """
        name = str(self.take("function"))
        power = base = None
        while self.kind in ("^", "_"):
            if self.take() == "^":
                power = self.exponent()
            else:
                base = self.argument()
        if power == ("neg", ("num", Fraction(1))):  # the inverse function, not 1 over the value
            name, power = f"arc{name}", None
        if (base is not None and name != "log") or (
            name.startswith("arc") and name not in FUNCTIONS
        ):
            raise Unreadable(name)
        argument = self.group(self.kind) if self.kind in ("(", "{") else self.factors()
        node: Node = ("call", name, argument) if base is None else ("log", base, argument)
        return node if power is None else ("pow", node, power)

    def factors(self) -> Node:
        """Read a function's argument without brackets: ``2x`` of ``sin 2x cos x``."""
        node = self.power()
        while self.kind in ("atom", "number", "frac", "sqrt"):
            node = self.beside(node)
        return node


_CLOSERS = {"(": ")", "{": "}", "[": "]", "lfloor": "rfloor", "lceil": "rceil"}


def _spelled(token: str | Node) -> str:
    """Write an index as text, without its braces."""
    return str(token[1]) if isinstance(token, tuple) else token.strip("{}")


def _proper(node: Node) -> bool:
    """Return whether a node is a fraction of two whole numbers between 0 and 1."""
    return (
        node[0] == "div"
        and all(part[0] == "num" and part[1].denominator == 1 for part in node[1:])
        and 0 < node[1][1] < node[2][1]
    )
