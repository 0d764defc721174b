"""The value of an expression as a name that two expressions share exactly if they are equal.

Read in this order: ``value_key`` and ``ratio_key``, then ``evaluate``. Numbers are exact fractions
as long as they are rational; all others are computed to 60 digits. Letters have fixed pseudo-random
fractions as values, so equal polynomials have equal values there. Different polynomials have equal
values by an accident of about one in 10^12. No algebra is done: the expression's length bounds the
time.

Left out: values too large to be written with a few million digits, which are unreadable. An
irrational sum below 10^-45 is taken for 0, as rounding leaves it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath

from rlif_lightning.answers.expression_tokens import Key, Node, Unreadable

_DIGITS = 60
_SIGNIFICANT = 40
# Terms whose sizes differ by more than this factor, as a logarithm, are not added: about 10^35.
_SWALLOWED = 80.0
# Largest exact numerator or denominator, bits. Larger numbers are computed to 60 digits.
_MAX_BITS = 4096
_MAX_FACTORIAL = 10_000
_MAX_EXPONENT = 1e6
# Irrational steps may lead to a rational number, as sqrt(2) * sqrt(2) does. It is recognised up to
# this denominator.
_MAX_DENOMINATOR = 10**12
_POINTS = ("positive", "negative", "mixed")


def letters(node: Node) -> frozenset[str]:
    """Return the variables of an expression."""
    if node[0] == "var":
        return frozenset([node[1]])
    return frozenset().union(*(letters(part) for part in node[1:] if isinstance(part, tuple)))


def value_key(node: Node) -> Key:
    """Return a name for the value: equal for equal expressions of the same letters.

    Raises:
        Unreadable: there is no such value (a division by zero), or it is too large.
    """
    names = tuple(sorted(letters(node)))
    if not names:
        return ("value", *_constant(evaluate(node, _POINTS[0]), _cancels(node)))
    return ("function", names, *(_fingerprint(evaluate(node, point)) for point in _POINTS[:2]))


def ratio_key(node: Node, positive: bool = False) -> Key:
    """Name an expression up to a constant factor: ``2x-4`` and ``2-x`` share it.

    Args:
        node: the expression.
        positive: do not take out a negative factor.

    Raises:
        Unreadable: as for :func:`value_key`, or the expression has no letters or is zero.
    """
    names = tuple(sorted(letters(node)))
    with mpmath.workdps(_DIGITS):
        values = [_inexact(evaluate(node, point)) for point in _POINTS]
        if not names or not values[0]:
            raise Unreadable("no equation")
        ratios = [_fingerprint(value / values[0]) for value in values[1:]]
    if positive and not isinstance(values[0], mpmath.mpf):
        raise Unreadable("no order")
    return ("ratio", names, *ratios, *([int(mpmath.sign(values[0]))] if positive else []))


def _cancels(node: Node) -> bool:
    """Return whether rounding may leave a small number where 0 is meant."""
    return node[0] in ("add", "sub", "call", "log") or any(
        _cancels(part) for part in node[1:] if isinstance(part, tuple)
    )


def evaluate(node: Node, point: str) -> Any:
    """Return the value at ``point``, which gives every letter a value.

    A Fraction where it is exact, else a number of mpmath.
    """
    with mpmath.workdps(_DIGITS):
        try:
            return _evaluate(node, point)
        except (ArithmeticError, ValueError, TypeError, MemoryError) as error:
            raise Unreadable(str(error)) from error


@lru_cache(4096)
def _letter(name: str, point: str) -> Fraction:
    """Return a fixed fraction for a letter, 0.3 to 2.7, of the sign that names the point."""
    digest = int.from_bytes(hashlib.sha256(f"{point} {name}".encode()).digest()[:8], "big")
    size = Fraction(3, 10) + Fraction(digest % (1 << 40) | 1, 1 << 40) * Fraction(12, 5)
    negative = point == "negative" or (point == "mixed" and digest >> 63)
    return -size if negative else size


def _evaluate(node: Node, point: str) -> Any:
    kind = node[0]
    if kind == "num":
        return node[1]
    if kind == "var":
        return _letter(node[1], point)
    if kind == "const":
        return {"pi": +mpmath.pi, "e": +mpmath.e, "i": mpmath.mpc(0, 1)}[node[1]]
    if kind == "call":
        return _call(node[1], _evaluate(node[2], point))
    arguments = [_evaluate(part, point) for part in node[1:]]
    return _shortened(_OPERATIONS[kind](*arguments))


def _inexact(value: Any) -> Any:
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _shortened(value: Any) -> Any:
    """Keep exact numbers of moderate size exact."""
    if (
        isinstance(value, Fraction)
        and max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS
    ):
        return _inexact(value)
    return value


def _binary(exact: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def compute(a: Any, b: Any) -> Any:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return exact(a, b)
        return exact(_inexact(a), _inexact(b))

    return compute


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exponent.denominator == 1 and abs(exponent) * bits <= 2 * _MAX_BITS:
            return base**exponent.numerator
        if base == 1:
            return base
    base, exponent = _inexact(base), _inexact(exponent)
    if base == 0:
        if mpmath.re(exponent) > 0:
            return Fraction(0)
        raise Unreadable("0 to a power that is not positive")
    if abs(exponent) * max(abs(mpmath.log(abs(base))), 1) > _MAX_EXPONENT:
        raise Unreadable("too large")
    return mpmath.power(base, exponent)


def _root(degree: Any, radicand: Any) -> Any:
    if not isinstance(degree, Fraction) or degree.denominator != 1 or not 1 <= degree <= 1000:
        raise Unreadable("a root's degree")
    if isinstance(radicand, Fraction) and radicand < 0 and degree % 2:
        return -_root(degree, -radicand)
    if degree == 2 and isinstance(radicand, Fraction) and radicand >= 0:
        top, bottom = math.isqrt(radicand.numerator), math.isqrt(radicand.denominator)
        if top * top == radicand.numerator and bottom * bottom == radicand.denominator:
            return Fraction(top, bottom)
    value = _inexact(radicand)
    return Fraction(0) if value == 0 else mpmath.power(value, mpmath.mpf(1) / int(degree))


def _factorial(value: Any) -> Any:
    if (
        not isinstance(value, Fraction)
        or value.denominator != 1
        or not 0 <= value <= _MAX_FACTORIAL
    ):
        raise Unreadable("a factorial")
    number = int(value)
    return Fraction(math.factorial(number)) if number <= 600 else mpmath.factorial(number)


def _binomial(n: Any, k: Any) -> Any:
    whole = (
        isinstance(n, Fraction) and isinstance(k, Fraction) and n.denominator == k.denominator == 1
    )
    if whole and 0 <= k <= n <= 500:
        return Fraction(math.comb(int(n), int(k)))
    if abs(n) > _MAX_FACTORIAL or abs(k) > _MAX_FACTORIAL:
        raise Unreadable("a binomial coefficient")
    return mpmath.binomial(_inexact(n), _inexact(k))


def _floor(value: Any) -> Any:
    if isinstance(value, Fraction):
        return Fraction(math.floor(value))
    if abs(value) > mpmath.mpf(10) ** _SIGNIFICANT:
        raise Unreadable("more digits than are computed")
    return Fraction(int(mpmath.floor(value)))


def _logarithm(base: Any, value: Any) -> Any:
    return mpmath.log(_inexact(value)) / mpmath.log(_inexact(base))


def _sum(a: Any, b: Any) -> Any:
    """Return a + b where both count; a sum that rounding changes is unreadable (``2^{5000}+1``)."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a + b
    a, b = _inexact(a), _inexact(b)
    if a and b and abs(mpmath.log(abs(a)) - mpmath.log(abs(b))) > _SWALLOWED:
        raise Unreadable("a term is lost in rounding")
    return a + b


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": _sum,
    "sub": lambda a, b: _sum(a, -b),
    "mul": _binary(lambda a, b: a * b),
    "div": _binary(lambda a, b: a / b),
    "neg": lambda a: -a,
    "pow": _power,
    "root": _root,
    "abs": abs,
    "factorial": _factorial,
    "binom": _binomial,
    "degrees": lambda a: _inexact(a) * mpmath.pi / 180,
    "percent": lambda a: a / 100,
    "floor": _floor,
    "ceil": lambda a: -_floor(-a),
    "log": _logarithm,
}
_CALLS: dict[str, Callable[[Any], Any]] = {
    **{
        name: getattr(mpmath, name)
        for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")
    },
    "exp": mpmath.exp,
    "ln": mpmath.log,
    "log": lambda value: mpmath.log(value) / mpmath.log(10),
    "lg": lambda value: mpmath.log(value) / mpmath.log(10),
    "arcsin": mpmath.asin,
    "arccos": mpmath.acos,
    "arctan": mpmath.atan,
}


def _call(name: str, argument: Any) -> Any:
    value = _inexact(argument)
    if abs(value) > _MAX_EXPONENT:
        raise Unreadable("a function of a huge number")
    result = _CALLS[name](value)
    if not mpmath.isfinite(result) or abs(result) > mpmath.mpf(10) ** (_DIGITS // 2):
        raise Unreadable("no finite value")  # the tangent of a right angle, but for rounding
    return result


def _parts(value: Any, cancels: bool = True) -> tuple[Any, Any]:
    """Return real and imaginary part without rounding noise.

    This includes what a sum left of 0 (``cancels``).
    """
    if not mpmath.isfinite(value):
        raise Unreadable("no finite value")
    noise = max(abs(value), 1 if cancels else 0) * mpmath.mpf(10) ** -(_SIGNIFICANT + 5)
    real, imaginary = (
        part if abs(part) > noise else mpmath.mpf(0)
        for part in (mpmath.re(value), mpmath.im(value))
    )
    return real, imaginary


def _fingerprint(value: Any) -> tuple[str, str]:
    """Return real and imaginary part to 40 digits."""
    with mpmath.workdps(_DIGITS):
        real, imaginary = _parts(_inexact(value))
        return str(mpmath.nstr(real, _SIGNIFICANT)), str(mpmath.nstr(imaginary, _SIGNIFICANT))


def _constant(value: Any, cancels: bool) -> tuple[Any, ...]:
    """Return a constant's name: the fraction itself where it is rational."""
    if isinstance(value, Fraction):
        return (value,)
    with mpmath.workdps(_DIGITS):
        parts = [_recognised(part) for part in _parts(value, cancels)]
    return (parts[0],) if parts[1] == 0 else tuple(parts)


def _recognised(number: Any) -> Any:
    """Return the fraction that a number is but for rounding; else its digits."""
    if not number:
        return Fraction(0)
    if mpmath.mpf(10) ** -_DIGITS < abs(number) < mpmath.mpf(10) ** (_SIGNIFICANT // 2):
        sign, mantissa, exponent, _ = number._mpf_
        exact = Fraction(-mantissa if sign else mantissa) * Fraction(2) ** exponent
        near = exact.limit_denominator(_MAX_DENOMINATOR)
        if abs(near - exact) <= abs(exact) / 10 ** (_SIGNIFICANT + 5):
            return near
    return mpmath.nstr(number, _SIGNIFICANT)
