r"""One spelling for an answer: TeX, Unicode and markdown that mean the same become equal.

Read in this order: ``normalise``, then its steps in the order in which ``_pass`` takes them. No
step changes the value of an answer. Units stay (``units.py`` reads them), for ``5 km`` is not
``5 m``.

Left out: what an expression means (``expressions.py``), and languages other than English.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Longer answers are text: whitespace is collapsed and only equal strings are equal.
MAX_LENGTH = 256
# Two or three passes reach a fixed point; the bound is for strings that never reach one.
_MAX_PASSES = 12

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013\u2014\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00b7\u22c5\u2219", r"\cdot "),
        "\u00d7": r"\times ",
        "\u00f7": "/",
        "\u2044": "/",
        "\u03c0": r"\pi ",
        "\u221e": r"\infty ",
        **dict.fromkeys("\u2264\u2a7d", r"\le "),
        **dict.fromkeys("\u2265\u2a7e", r"\ge "),
        "\u2260": r"\ne ",
        "\u2248": r"\approx ",
        "\u00b1": r"\pm ",
        "\u2213": r"\mp ",
        "\u222a": r"\cup ",
        "\u2229": r"\cap ",
        "\u2208": r"\in ",
        "\u2205": r"\emptyset ",
        "\u211d": r"\mathbb{R}",
        "\u221b": r"\sqrt[3]",
        **{
            chr(0x3B1 + k): rf"\{name} "
            for k, name in enumerate(("alpha", "beta", "gamma", "delta"))
        },
        "\u03b8": r"\theta ",
        "\u03bb": r"\lambda ",
        "\u03bc": r"\mu ",
        "\u03c3": r"\sigma ",
        "\u03c6": r"\phi ",
        "\u03c9": r"\omega ",
        # full-width ASCII
        **{chr(0xFF01 + k): chr(0x21 + k) for k in range(94) if chr(0x21 + k) not in "-"},
        **dict.fromkeys("\u2018\u2019\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u2033", '"'),
        "\u202e": "",
    }
)
_SUPERSCRIPT = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_SUBSCRIPT = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_SCRIPTS = re.compile(f"(?P<up>[{''.join(_SUPERSCRIPT)}]+)|(?P<down>[{''.join(_SUBSCRIPT)}]+)")

_TEXT_COMMAND = (
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|normal)"
    r"|mbox|operatorname|boldsymbol|bm)"
)
_BEFORE_DELIMITERS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"(?<!\\)\\[()\[\]]|\\(?:displaystyle|textstyle|limits)(?![A-Za-z])", " "),
        # A comma with TeX's negative space is that of thousands, in brackets too.
        (r"(?<=[0-9])\s*,\s*\\!\s*(?=[0-9]{3}(?![0-9]))", ""),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*\.?|\\!", ""),
        (r"\\[lr]vert(?![A-Za-z])|\\[lr]\|", "|"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\dbinom(?![A-Za-z])|\\tbinom(?![A-Za-z])", r"\\binom"),
        # those with braces inside, which _untexted leaves
        (_TEXT_COMMAND + r"(?![A-Za-z])\s*(?=\{)", ""),
        (r"\\(?:bf|rm|it|mathrm|text)(?![A-Za-z])", " "),
        (r"\{\s*,\s*\}", "{,}"),
        (r"(?<=[0-9])(?:\{,\})(?=[0-9]{3})", ""),
        (r"\\(?:leq|leqslant)(?![A-Za-z])|<=", r"\\le "),
        (r"\\(?:geq|geqslant)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
        (r"\\(?:varnothing)(?![A-Za-z])", r"\\emptyset "),
        (
            r"\s*\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})"
            r"|\\degree(?![A-Za-z])|\^\s*\{?\s*°\s*\}?",
            "°",
        ),
        (r"\\%", "%"),
        (r"\\phantom(?![A-Za-z])\s*(?:\{[^{}]*\}|.)", ""),
        (r"\\(?:pounds|textsterling)(?![A-Za-z])", "£"),
        (r"\\texteuro(?![A-Za-z])", "€"),
        (r"(?<=[0-9])\s*[x\u2715]\s*(?=10\s*\^)", r"\\times "),
        (r"\*\*", "^"),
        (r"(?<=[0-9)}])\s*\\(?:cdot|times)\s*", "*"),
        # The look-behind spares a matrix's row break.
        (r"(?<!\\)\\[,;: >]|\\q?quad(?![A-Za-z])|~", " "),
    ]
]
_APPROXIMATELY = re.compile(
    r"(?:\\approx(?![A-Za-z])|\\sim(?![A-Za-z])|approximately\b|about\b|roughly\b)\s*", re.I
)
_SPACED_THOUSANDS = re.compile(
    r"(?<![0-9.,/])(?<![0-9] )[0-9]{1,3}(?: [0-9]{3})+(?![0-9]|,[0-9]| ?[/0-9])"
)
# A space between a closing bracket and a letter stays: it may part a value from its unit.
_SPACES = re.compile(r"\s*([-+=*/^:|<>({\[_])\s*|\s*([)}\]])(?:\s+(?![A-Za-z]))?")
# The step before takes the space of "3 or -4" away, and "(1,2) and (3,4)" loses one too.
_JOINED = re.compile(r"(?<=[\s0-9)\]}°%])(and|or)(?=[-+({\[|]|\\\{)")
_SEPARATOR = re.compile(r"\s*([,;])\s*")
_CHOICE = re.compile(r"\(\s*([A-Z]|[a-e])\s*\)|([A-J])\)")
# The step before takes the space before a bracket away.
_OPTION = re.compile(
    r"\b(?:choice|option|answer)(?: |(?=\())(?=\(?[A-J]\)?$|\([A-J]\)|[A-J][).:])", re.IGNORECASE
)
_GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
_DECIMAL = re.compile(r"([-+]?)([0-9]*)(?:\.([0-9]*))?")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ ,'-]+[^\W\d_]+)*")
_PLAIN = re.compile(r"(?:0|-?[1-9][0-9]*)")


def normalise(answer: str) -> str:
    r"""Return the canonical spelling of an answer, with the same value. Idempotent.

    Letters with accents are one character each. Takes away surrounding whitespace, quotation marks
    and markdown emphasis, TeX's ``$``, a final period, ``\boxed{}``, ``\left``, TeX spacing,
    ``\text{}``, "approximately", and spaces around operators and brackets.
    ``\dfrac`` becomes ``\frac``. ``½``, ``√2``, ``π``, ``x²``, ``≥`` and full-width characters
    become TeX; degree and per cent signs become ``°`` and ``%``, a dollar sign ``\$``. Thousands
    lose their commas and spaces (``1,234`` and ``28\,121\,600``, but ``81, 256`` and ``(1,200)``
    are lists), a plain number its leading + and needless zeros. Units stay. A choice loses its
    brackets ("(A)", "(a)" -> "A"). Words alone are case-folded ("Yes" -> "yes"); letters in
    formulas keep their case. An answer of more than 256 characters has its whitespace collapsed and
    nothing else.
    """
    if _PLAIN.fullmatch(answer) and len(answer) <= MAX_LENGTH:
        return answer
    # One letter may be two characters: an accent behind its letter.
    text = " ".join(unicodedata.normalize("NFC", answer).split())
    return text if len(text) > MAX_LENGTH else _normal(text)


@lru_cache(65_536)
def _normal(text: str) -> str:
    start = text
    for _ in range(_MAX_PASSES):
        before, text = text, _pass(text)
        if text == before:
            return text
        if len(text) > MAX_LENGTH:
            break
    return start


def _pass(text: str) -> str:
    text = _untexted(_unwrapped(_unicode(text)))
    for pattern, replacement in _BEFORE_DELIMITERS:
        text = pattern.sub(replacement, text)
    text = _without_dollars(" ".join(text.split()))
    text = _APPROXIMATELY.sub("", text, count=1) if _APPROXIMATELY.match(text) else text
    text = _SPACED_THOUSANDS.sub(lambda match: match[0].replace(" ", ""), text)
    text = _JOINED.sub(r" \1 ", _SPACES.sub(r"\1\2", text))
    text = _separators(" ".join(text.split()))
    text = _OPTION.sub("", text)
    if choice := _CHOICE.fullmatch(text):
        text = (choice[1] or choice[2]).upper()
    number = _DECIMAL.fullmatch(text)
    if number and (number[2] or number[3]):
        return _plain_number(number)
    # A few capitals are initials or a segment: AB is not the product of a and b.
    initials = text.isupper() and len(text) <= 3 and text not in ("YES", "NO")
    return text.casefold() if _WORDS.fullmatch(text) and not initials else text


def _plain_number(number: re.Match[str]) -> str:
    whole, part = number[2].lstrip("0") or "0", (number[3] or "").rstrip("0")
    text = f"{whole}.{part}" if part else whole
    return "-" + text if number[1] == "-" and text != "0" else text


def _unicode(text: str) -> str:
    if text.isascii():
        return text
    text = text.translate(_CHARACTERS)
    text = re.sub("√\\s*([0-9]+(?:\\.[0-9]+)?|[A-Za-z]|\\\\pi )", r"\\sqrt{\1}", text)
    text = re.sub(r"√\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = _SCRIPTS.sub(_script, text)
    return "".join(map(_digit, text))


def _script(match: re.Match[str]) -> str:
    if match["up"]:
        return "^{" + "".join(_SUPERSCRIPT[c] for c in match["up"]) + "}"
    return "_{" + "".join(_SUBSCRIPT[c] for c in match["down"]) + "}"


def _digit(character: str) -> str:
    """Write a digit of any script as ASCII, and a fraction such as ½ as TeX."""
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.digit(character))
    if category == "No" and unicodedata.decomposition(character).startswith("<fraction>"):
        top, _, bottom = unicodedata.normalize("NFKC", character).partition("\u2044")
        return rf"\frac{{{top}}}{{{bottom}}}" if bottom else character
    return character


_TEXT = re.compile(_TEXT_COMMAND + r"\s*\{([^{}]*)\}")


def _untexted(text: str) -> str:
    r"""Replace ``\text{}`` and its like by their content, from the inside out."""
    while (bare := _TEXT.sub(r" \1 ", text)) != text:
        text = bare
    return text


_QUOTED = re.compile(r"""(["'])((?:(?!\1).)*\w(?:(?!\1).)*)\1""", re.DOTALL)
_BOX = re.compile(r"(?:\\(?:boxed|fbox)\s*)?\{(.*)\}", re.DOTALL)


def _unwrapped(text: str) -> str:
    """Remove markdown or quotation marks around an answer, a final period, and a box around it."""
    text = text.strip()
    text = text.strip("*`") if text[:1] in "*`" or text[-1:] in "*`" else text
    text = text.strip("_").rstrip(" .,;").strip()
    text = quoted[2].strip() if (quoted := _QUOTED.fullmatch(text)) else text
    text = re.sub(r"(?<=[A-Za-z0-9)}\]%°])\.(?=\$+$)", "", text)  # "$18.$"
    box = _BOX.fullmatch(text)
    return box[1] if box and _balanced(box[1]) else text


def _balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


_ONE_DOLLAR = re.compile(r"(?:US)?([-+]?)\$\s*(?=[-+]?[0-9.])")


def _without_dollars(text: str) -> str:
    r"""Remove TeX's delimiters.

    One dollar sign alone before a number is money, and is spelled ``\$``.
    """
    bare = len(re.findall(r"(?<!\\)\$", text))
    if bare == 1 and _ONE_DOLLAR.match(text):
        return _ONE_DOLLAR.sub(r"\1\\$", text, count=1)
    return re.sub(r"(?<!\\)\$", "", text).strip() if bare else re.sub(r"\\\$\s+", r"\\$", text)


def _separators(text: str) -> str:
    r"""Remove commas of thousands outside brackets, and spell other commas in one way.

    They become ``, `` outside brackets and ``,`` inside them.
    """
    if "," not in text and ";" not in text:
        return text
    pieces, depth, start = [], 0, 0
    for match in re.finditer(r"\\[{}]|[()\[\]]", text):
        closes = match[0][-1] in ")]}"
        if not depth or (closes and depth == 1):
            pieces.append((depth, text[start : match.start() if not depth else match.end()]))
            start = match.start() if not depth else match.end()
        depth = max(depth - 1, 0) if closes else depth + 1
    pieces.append((depth, text[start:]))
    return "".join(_commas(piece, inside=inside > 0) for inside, piece in pieces)


def _commas(piece: str, inside: bool) -> str:
    if inside:
        return _SEPARATOR.sub(r"\1", piece)
    piece = _GROUPED.sub(lambda match: match[0].replace(",", ""), piece)
    return _SEPARATOR.sub(r"\1 ", piece)
