r"""Units: the words behind a value (for money, before it) that say of what it is a number.

One rule, here: ``split_unit`` parts an answer into a value, a factor and a unit. Words behind a
value are a unit ("18 marbles", ``5\text{ cm}^2``). Number words and "percent" are no units but
change the value ("5 million"), and so do "a.m." and "p.m." (``readings.py``). What equal values
with different units mean is said in ``clusters.py``.

Left out: conversion (60 minutes is not 1 hour), and units in languages other than English.
"""

from __future__ import annotations

import re
from typing import NamedTuple

FACTORS = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}

_SPELLINGS = {
    "meter": "m metre meters metres",
    "kilometer": "km kms kilometre kilometers kilometres",
    "centimeter": "cm cms centimetre centimeters centimetres",
    "millimeter": "mm mms millimetre millimeters millimetres",
    "inch": "in inches \" ''",
    "foot": "ft feet '",
    "yard": "yd yds yards",
    "mile": "mi miles",
    "gram": "g gm gms grams gramme grammes",
    "kilogram": "kg kgs kilograms kilo kilos",
    "milligram": "mg milligrams",
    "pound": "lb lbs pounds £ gbp",
    "ounce": "oz ounces",
    "ton": "tons tonne tonnes",
    "liter": "l litre liters litres",
    "milliliter": "ml millilitre milliliters millilitres",
    "gallon": "gal gallons",
    "second": "s sec secs seconds",
    "minute": "min mins minutes",
    "hour": "h hr hrs hours",
    "year": "yr yrs years",
    "week": "wk wks weeks",
    "dollar": "$ usd dollars buck bucks us$",
    "cent": "cents ¢",
    "euro": "€ euros eur",
    "rupee": "rs rupees ₹",
    "yen": "¥",
    "mile/hour": "mph",
    "kilometer/hour": "kph kmh",
    "%": "percent percentage",
    "°": "degree degrees deg",
    "celsius": "°c",
    "fahrenheit": "°f",
    "person": "people persons",
    "man": "men",
    "woman": "women",
    "child": "children",
    "mouse": "mice",
    "goose": "geese",
    "tooth": "teeth",
    "half": "halves",
    "leaf": "leaves",
    "knife": "knives",
    "unit": "units",
}
_NAMES = {
    spelling: name
    for name, spellings in _SPELLINGS.items()
    for spelling in (name, *spellings.split())
}
_SHORT = {spelling for spelling in _NAMES if len(spelling) <= 3 and spelling.isalpha()}

# Words behind the noun that do not change it, and words that begin an addition to it.
_FILLERS = {
    *(
        "left",
        "more",
        "less",
        "fewer",
        "total",
        "altogether",
        "remaining",
        "each",
        "away",
        "old",
        "long",
        "tall",
    ),
    *(
        "high",
        "wide",
        "deep",
        "now",
        "overall",
        "extra",
        "additional",
        "so",
        "far",
        "apart",
        "ago",
        "later",
        "only",
    ),
}
_PREPOSITIONS = {
    "of",
    "in",
    "on",
    "at",
    "for",
    "from",
    "with",
    "to",
    "by",
    "that",
    "who",
    "which",
    "than",
    "is",
    "are",
}
_MEASURES = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}

# Letters that mean a function, a number or a connection, and so never begin a unit.
_NO_UNIT = re.compile(
    r"(?:sin|cos|tan|cot|sec|csc|log|ln|lg|exp|sqrt|frac|pi|inf|infinity"
    r"|and|or|mod|to|if|where|when|a\.?m|p\.?m)(?![A-Za-z-])",
    re.IGNORECASE,
)
_WORD = re.compile(r"(?<![\\A-Za-z_^{])[A-Za-z]+(?:-[A-Za-z]{2,})*")
_TAIL = re.compile(
    r"[A-Za-z][A-Za-z .'/°-]*(?:\^\{?[23]\}?|-[0-9])?(?:/[A-Za-z]+(?:\^\{?[23]\}?)?)?(?: [A-Za-z"
    r" .]*)?"
)
_MONEY = re.compile(
    r"([-+]?)(?:US)?(\\\$|£|€|¥|₹|(?:USD|US\$|Rs\.?|EUR|GBP)(?= ?[0-9.]))\s*([-+]?)"
)
_PRIMES = re.compile(r"([-+]?[0-9][0-9.,/ ]*)('{1,2}|\")")
_NUMBER_END = re.compile(r"[0-9.}\])°]$|\\pi$")
_VALUE_END = re.compile(r"[0-9)}\]A-Za-z.!|°]$")


class Parted(NamedTuple):
    """An answer's value as text, the factor of its number words, and its unit's name or ""."""

    value: str
    factor: int = 1
    unit: str = ""


def split_unit(text: str) -> Parted:
    """Part a normalised answer into value, factor and unit.

    Args:
        text: one answer, not a list.

    Returns:
        The whole text as the value where no unit is found.

    Example:
        >>> split_unit("5 million dollars")
        Parted(value='5', factor=1000000, unit='dollar')
    """
    if text.isdigit():
        return Parted(text)
    money = _MONEY.match(text)
    if money and len(text) > money.end():
        parted = _behind(money[1] + money[3] + text[money.end() :])
        return parted if parted.unit else parted._replace(unit=unit_name(money[2].strip("\\.")))
    return _behind(text)


def _behind(text: str) -> Parted:
    if text[-1] in "°%" and _simple(text[:-1]):
        return Parted(text[:-1].strip(), 1, text[-1])
    if text[-1] in "£€¢¥" and text[:-1].strip()[-1:].isdigit():
        return Parted(text[:-1].strip(), 1, unit_name(text[-1]))
    if primes := _PRIMES.fullmatch(text):
        return Parted(primes[1].strip(), 1, _NAMES[primes[2]])
    match = next((match for match in _WORD.finditer(text) if _begins_unit(text, match)), None)
    if match is None or not _TAIL.fullmatch(text[match.start() :]):
        return Parted(text)
    factor, words = 1, text[match.start() :].split(" ")
    while words and (number := FACTORS.get(words[0].lower().removesuffix("s"))):
        factor, words = factor * number, words[1:]
    value, phrase = text[: match.start()].strip(), " ".join(words)
    if value.endswith("°"):
        value, phrase = value[:-1], "°" + phrase
    return Parted(value, factor, unit_name(phrase) if phrase else "")


def _simple(value: str) -> bool:
    """Return whether a degree or per cent sign behind this belongs to all of it."""
    return bool(value) and not re.search(r"[°%,;=<>]|\\?(?:sin|cos|tan|cot|sec|csc)", value)


def _begins_unit(text: str, match: re.Match[str]) -> bool:
    """Return whether a run of letters is a word behind a value.

    Otherwise it is a function or a product of variables.
    """
    before, run = text[: match.start()], match[0]
    value = before.rstrip()
    if not value or not _VALUE_END.search(value) or _NO_UNIT.match(text, match.start()):
        return False
    spaced, after_number = before != value, bool(_NUMBER_END.search(value))
    if run in _SHORT:
        return (
            after_number
            and (spaced or len(run) > 1)
            and text[match.end() : match.end() + 1] not in ("_", "(")
        )
    return (
        len(run) >= 4
        or (len(run) > 1 and spaced and after_number)
        or (run in ("C", "F") and value[-1] == "°")
    )


def unit_name(phrase: str) -> str:
    """Return one name for the spellings of a unit: its head noun, singular, with its power.

    Example:
        >>> unit_name("square kms"), unit_name("red marbles in total"), unit_name("m/s")
        ('kilometer^2', 'marble', 'meter/second')
    """
    phrase = re.sub(r"\bper cent\b", "percent", phrase.lower().replace("{", "").replace("}", ""))
    parts = [_noun(part) for part in re.split(r"/|\bper\b|\b(?:an?|each) (?=\w+$)", phrase)]
    return "/".join(part for part in parts if part)


def _noun(phrase: str) -> str:
    power = "".join(re.findall(r"\^[23]", phrase)[:1])
    words: list[str] = []
    for word in re.sub(r"\^[23]|[.']", " ", phrase).replace("-", " ").split():
        if word in _PREPOSITIONS and not (word == "in" and not words):
            break
        if word in ("squared", "cubed"):
            power = "^2" if word == "squared" else "^3"
        elif word in _MEASURES:
            power = _MEASURES[word]
        elif word not in _FILLERS:
            words.append(word)
    return singular(words[-1]) + power if words else ""


def singular(noun: str) -> str:
    """Return a noun in the singular, or the full name of an abbreviated unit."""
    if noun in _NAMES:
        return _NAMES[noun]
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if re.search(r"(?:s|x|z|ch|sh)es$", noun):
        return noun[:-2]
    return (
        noun[:-1]
        if noun.endswith("s") and not noun.endswith(("ss", "us", "is")) and len(noun) > 2
        else noun
    )
