"""Units: parted from the value in one place, compared by name, and in a group never chained by bare
numbers.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlif_lightning.answers.final_answers import AnswerExtractor, cluster, equivalent, normalise
from rlif_lightning.answers.units import split_unit, unit_name

# As in "how many X": plurals of every ending, irregular ones, hyphens, measures, words that look
# like functions.
NOUNS = [
    "marbles",
    "eggs",
    "dollars",
    "students",
    "boxes",
    "buses",
    "cherries",
    "wolves",
    "people",
    "men",
    "women",
    "children",
    "feet",
    "inches",
    "geese",
    "t-shirts",
    "push-ups",
    "classes",
    "watches",
    "quizzes",
    "knives",
    "miles",
    "hours",
    "degrees",
    "cents",
    "liters",
    "ways",
    "integers",
    "sinks",
    "lognormals",
    "pies",
    "pints",
    "coins",
    "tangents",
    "secants",
    "expeditions",
    "inmates",
    "infants",
    "tons",
    "minutes",
    "glasses",
    "data",
    "sheep",
    "units",
    "pi-charts",
]


@pytest.mark.parametrize(
    ("answer", "value", "factor", "unit"),
    [
        ("18 marbles", "18", 1, "marble"),
        (r"5\text{ cm}^2", "5", 1, "centimeter^2"),
        ("5 sq. cm", "5", 1, "centimeter^2"),
        ("5 cubic feet", "5", 1, "foot^3"),
        ("3 million dollars", "3", 10**6, "dollar"),
        ("2 hundred thousand", "2", 10**5, ""),
        (r"\$7.50", "7.50", 1, "dollar"),
        ("-$7", "-7", 1, "dollar"),
        ("£9", "9", 1, "pound"),
        ("9 €", "9", 1, "euro"),
        ("12.5 percent", "12.5", 1, "%"),
        (r"90^\circ", "90", 1, "°"),
        ("90 degrees", "90", 1, "°"),
        (r"\sin 30^\circ", r"\sin 30°", 1, ""),
        (r"12\pi \text{ in}^2", r"12\pi", 1, "inch^2"),
        ("5 m", "5", 1, "meter"),
        ("5m", "5m", 1, ""),
        ("5 cats in the house", "5", 1, "cat"),
        ("5 red balls per box", "5", 1, "ball/box"),
        ("x+y", "x+y", 1, ""),
        ("3xy", "3xy", 1, ""),
        ("3 or 4", "3 or 4", 1, ""),
        (r"2\cos x", r"2\cos x", 1, ""),
        ("18 more", "18", 1, ""),
        ("5'", "5", 1, "foot"),
        ("5\u2032", "5", 1, "foot"),
        ("2.5''", "2.5", 1, "inch"),
        ('5 "', "5", 1, "inch"),
        ("5'10\"", "5'10\"", 1, ""),
        ('"5"', "5", 1, ""),  # quotation marks are none of a number's marks
    ],
)
def test_split_unit(answer, value, factor, unit):
    assert tuple(split_unit(normalise(answer))) == (value, factor, unit)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("marble", "Marbles"),
        ("km", "kilometres"),
        ("m/s", "meters per second"),
        ("mph", "miles per hour"),
        ("cm^2", "square centimeters"),
        ("cubic inches", "in^3"),
        ("feet", "ft."),
        ("cherries", "cherry"),
        ("boxes", "box"),
        ("people", "person"),
        ("dollars", "USD"),
    ],
)
def test_spellings_of_a_unit_have_one_name(one, other):
    assert unit_name(one) == unit_name(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("km", "m"), ("cm^2", "cm^3"), ("apples", "pears"), ("miles", "miles per hour"), ("g", "kg")],
)
def test_units_that_differ_have_two_names(one, other):
    assert unit_name(one) != unit_name(other)


@pytest.mark.parametrize("noun", NOUNS)
def test_a_number_of_things_is_the_number(noun):
    for answer in (
        f"18 {noun}",
        rf"18\text{{ {noun}}}",
        f"18 {noun}.",
        rf"$18 \mathrm{{ {noun} }}$",
    ):
        assert equivalent(answer, "18")
        assert not equivalent(answer, "19")
        assert cluster([answer, "18", "18.0", "19"]) == [0, 0, 0, 1]
    said = AnswerExtractor()(f"The answer is 18 {noun}.")
    assert said == f"18 {noun}"
    assert equivalent(said, "18")


@pytest.mark.parametrize(
    ("group", "clusters"),
    [
        (["18 marbles", "18", r"18\text{ marble}"], [0, 0, 0]),
        (["5 km", "5 m", "5", "5"], [1, 2, 0, 0]),
        (["5 km", "5 m", "5 km"], [0, 1, 0]),
        (["5 km", "5 m", "6"], [0, 1, 2]),
        (["5 km", "6 m", "5", "6"], [0, 1, 0, 1]),
        (["50%", "50", "50"], [0, 0, 0]),
        (["50%", "1/2", "0.5"], [0, 0, 0]),
        (["50%", "50", "0.5"], [2, 1, 0]),
        (["90°", "90 degrees", r"\frac{\pi}{2}"], [0, 0, 0]),
        (["x=5", "5", "5"], [0, 0, 0]),
        (["x=5", "y=5", "5"], [1, 2, 0]),
        (["x=5", "5", "5 km"], [0, 0, 0]),
        (["3:30", "3:30 pm", "15:30"], [0, 0, 0]),
        (["3:30", "3:30 am", "3:30 pm"], [0, 1, 2]),
        (["4 cm, 9 cm", "4, 9", "9 m, 4 m"], [0, 1, 2]),
    ],
)
def test_bare_numbers_join_a_unit_only_if_there_is_one(group, clusters):
    assert cluster(group) == clusters


POOL = [
    "5 km",
    "5 m",
    "5",
    "5.0",
    "x=5",
    "y=5",
    "5%",
    "0.05",
    "1/20",
    "5°",
    "5 apples",
    "2 am",
    "2",
    "3:30",
    "3:30 pm",
]
POOL += [
    "15:30",
    r"\{1,2\}",
    "1,2",
    "(1,2)",
    "x=1,x=2",
    "x=1,y=2",
    "(B) 5",
    "B",
    "y=2x",
    "2x",
    "2x-y=0",
    "no",
    None,
]


def partition(group: list) -> set[frozenset[str]]:
    """The clusters as sets of strings, without numbers and frequencies."""
    ids = cluster(group)
    return {
        frozenset(a for a, i in zip(group, ids, strict=True) if i == number)
        for number in set(ids) - {None}
    }


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(POOL), max_size=8), st.randoms())
def test_clusters_depend_neither_on_rows_nor_on_frequencies(group, rng):
    ids, order = cluster(group), rng.sample(range(len(group)), len(group))
    assert cluster([group[i] for i in order]) == [ids[i] for i in order]
    repeated = [answer for answer in group for _ in range(rng.randint(1, 3))]
    assert partition(repeated) == partition(group)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(POOL[:-1]), min_size=2, max_size=8))
def test_a_cluster_of_two_is_a_pair_that_is_equal(group):
    """What stands together in a group is equal by pairs or by way of what both complete."""
    for a, b in itertools.combinations(set(group), 2):
        if cluster([a, b]) == [0, 0]:
            assert equivalent(a, b)
            assert equivalent(b, a)
