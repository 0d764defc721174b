"""Word problems of several kinds with one or two steps, and pupils' solutions. Pure functions.

Shopping, sharing, ages and distances. A solution ends in ``#### 12``. Its style decides how much
work is written before. Numbers are small: terms up to 20, products and quotients of the small
multiplication table.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rlif_lightning.data.generated_text import split_of

LEVELS = {"one": (1,), "two": (2,), "both": (1, 2)}  # steps of a level's problems
MAX_ANSWER = 99
STYLES = {"sentence": 0.45, "sums": 0.35, "answer": 0.2}  # shares of the pupils

NAMES, THINGS, QUALITIES, PLACES = (
    text.split()
    for text in (
        "Aaron Abigail Adele Alice Amara Amos Anita Anton Arjun Astrid Beatrice Benito Bianca "
        "Boris Brenda Bruno Callum Camila Carmen Cedric Chloe Clara Conrad Cyrus Daisy Damian "
        "Daphne Deepa Diego Dmitri Dorothy Edgar Eleanor Elias Elif Emil Esther Ethan Fatima "
        "Felix Fiona Florian Freya Gabriel Georgia Gilbert Giulia Grace Gustav Hamza Hannah "
        "Harold Hedwig Helena Hugo Imani Ingrid Iris Isaac Ivan Jacob Jasmine Jonas Josephine "
        "Julian Kamal Katarina Keiko Kenneth Kofi Laila Lars Laura Leonard Lidia Linus Lucia "
        "Magnus Malik Margaret Mariam Mateo Matilda Milan Miriam Nadia Naomi Natasha Nikolai "
        "Nina Norman Octavia Olga Oliver Omar Oscar Pablo Pamela Patrick Pedro Petra Philippa "
        "Quentin Rachel Rafael Ramona Raymond Rebecca Rosalind Rupert Sabine Samuel Sanjay "
        "Sarah Selma Simon Sofia Stefan Susan Tamara Tariq Thelma Theodor Ursula Valerie "
        "Victor Viola Walter Wanda William Xenia Yasmin Yusuf Zachary Zelda",
        "badge bagel ball balloon banana basket bead bicycle biscuit blanket book bottle "
        "bracelet brush bucket button cake candle carrot chair chestnut chocolate clock "
        "coconut comb cookie crayon cucumber cup cushion doll donut dumpling feather flower "
        "flute fork glove grape guitar hammer hat jacket jar kettle kite ladder lamp lantern "
        "lemon lollipop magnet mango map marble mask melon mirror mitten muffin mug napkin "
        "necklace needle notebook nut paintbrush pancake parrot peach pear pebble pencil "
        "pepper pillow pin plate plum postcard poster potato pumpkin puppet puzzle racket "
        "radish ribbon ring robot rope ruler sandwich sausage scarf seashell shirt shovel "
        "skirt sock spoon stamp sticker stool sweater teapot ticket tomato towel toy trumpet "
        "tulip turnip vase violin wallet whistle wrench yacht",
        "big black blue brave bright bronze broken brown cheap clean clumsy cold copper cosy "
        "crimson crooked curly damp dark dusty famous fancy fragile fresh funny gentle giant "
        "glossy golden gray green handsome heavy hollow huge large leather lilac little "
        "lovely marble modern narrow new painted pale pink plain plastic polished pretty "
        "purple red round rusty scarlet shiny silver simple small smooth soft spotted square "
        "sturdy striped tiny turquoise velvet violet white wide wooden woollen yellow",
        "airport aquarium bakery bank barn beach bridge cabin camp castle cathedral cave "
        "church cinema clinic cottage dairy farm ferry field forest fountain garage garden "
        "gymnasium harbour hospital hotel island lake library lighthouse market meadow mill "
        "mountain museum office orchard palace park pharmacy playground pond quarry ranch "
        "restaurant river school shrine square stable stadium station swamp temple theatre "
        "tower university valley village vineyard warehouse waterfall windmill workshop zoo",
    )
)

# Steps, question, answer's unit. A step's result is the first number of the next step.
Template = tuple[str, str, str]
ONE: tuple[Template, ...] = (
    ("+", "{n} buys a {c} {t} for {a} dollars and a {u} for {b} dollars. How many dollars does {n}"
     " pay?", "dollars"),
    ("-", "{n} has {a} dollars and buys a {c} {t} for {b} dollars at the {p}. How many dollars are"
     " left?", "dollars"),
    ("*", "{n} buys {a} {t}s for {b} dollars each. How many dollars does {n} pay?", "dollars"),
    ("+", "{n} gives {a} {t}s to {m} and {b} {t}s to {k}. How many {t}s does {n} give away?",
     "{t}s"),
    ("-", "{n} has {a} {c} {t}s and gives {b} of them to {m}. How many {t}s does {n} keep?",
     "{t}s"),
    ("/", "{n} shares {a} {t}s equally among {b} friends. How many {t}s does each friend get?",
     "{t}s"),
    ("+", "{n} is {a} years old. {m} is {b} years older. How old is {m}?", "years"),
    ("-", "{n} is {a} years old. {m} is {b} years younger. How old is {m}?", "years"),
    ("*", "{n} is {a} years old. {m} is {b} times as old. How old is {m}?", "years"),
    ("+", "{n} walks {a} miles to the {p} and then {b} miles to the {q}. How many miles does {n}"
     " walk?", "miles"),
    ("-", "The {p} is {a} miles from the {q}. {n} has walked {b} miles of them. How many miles are"
     " left?", "miles"),
    ("*", "{n} rides {a} miles an hour from the {p}. How many miles does {n} ride in {b} hours?",
     "miles"),
)  # fmt: skip
TWO: tuple[Template, ...] = (
    ("*+", "{n} buys {a} {t}s for {b} dollars each and a {c} {u} for {d} dollars. How many dollars"
     " does {n} pay?", "dollars"),
    ("--", "{n} has {a} dollars. At the {p} {n} buys a {t} for {b} dollars and a {u} for {d}"
     " dollars. How many dollars are left?", "dollars"),
    ("+/", "{n} has {a} {t}s and gets {b} more from {m}. {n} shares them equally among {d} friends."
     " How many {t}s does each friend get?", "{t}s"),
    ("-+", "{n} has {a} {t}s, gives {b} to {m} and gets {d} from {k}. How many {t}s does {n} have"
     " now?", "{t}s"),
    ("+-", "{n} is {a} years old. {m} is {b} years older, and {k} is {d} years younger than {m}."
     " How old is {k}?", "years"),
    ("*+", "{n} is {a} years old, and {m} is {b} times as old. How old is {m} in {d} years?",
     "years"),
    ("++", "{n} walks {a} miles to the {p}, {b} miles to the {q} and {d} miles home. How many miles"
     " does {n} walk?", "miles"),
    ("*+", "{n} rides {a} miles an hour for {b} hours to the {p} and walks {d} miles to the {q}."
     " How many miles is that?", "miles"),
)  # fmt: skip


@dataclass(frozen=True)
class WordProblem:
    """A problem and its way to the answer.

    Attributes:
        question: its text.
        steps: each as first number, sign, second number, result.
        unit: what the answer counts.
    """

    question: str
    steps: tuple[tuple[int, str, int, int], ...]
    unit: str

    @property
    def answer(self) -> int:
        return self.steps[-1][-1]


def apply(sign: str, a: int, b: int) -> int | None:
    """Return ``a sign b``; None where it is no number from 1 to 99.

    Example:
        >>> [apply("-", 7, 7), apply("/", 12, 4), apply("/", 12, 5), apply("*", 9, 9)]
        [None, 3, None, 81]
    """
    if sign == "/":
        return a // b if a % b == 0 else None
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return value if 1 <= value <= MAX_ANSWER else None


def _numbers(signs: str, rng: random.Random) -> tuple[list[int], list[tuple[int, str, int, int]]]:
    """Draw numbers until every step has a result."""
    while True:
        small = signs[0] == "*"
        numbers = [rng.randint(2, 9 if small else 20)]
        steps = []
        for sign in signs:
            first = steps[-1][-1] if steps else numbers[0]
            second = rng.randint(2, 9 if sign in "*/" else 20)
            result = apply(sign, first, second)
            if result is None:
                break
            numbers.append(second)
            steps.append((first, sign, second, result))
        if len(steps) == len(signs):
            return numbers, steps


def draw(rng: random.Random, steps: int) -> WordProblem:
    """Draw a problem of one or two steps."""
    signs, text, unit = rng.choice(ONE if steps == 1 else TWO)
    numbers, done = _numbers(signs, rng)
    words = dict(zip("nmk", rng.sample(NAMES, 3), strict=True))
    words |= dict(zip("tu", rng.sample(THINGS, 2), strict=True))
    words |= dict(zip("pq", rng.sample(PLACES, 2), strict=True))
    words["c"] = rng.choice(QUALITIES)
    words |= {name: str(number) for name, number in zip("abd", numbers, strict=False)}
    return WordProblem(text.format(**words), tuple(done), unit.format(**words))


def problems(
    split: Literal["train", "validation"], level: str, rng: random.Random
) -> Iterator[WordProblem]:
    """Yield different problems of a split and level, without end.

    Args:
        split: each text belongs to one.
        level: one of ``LEVELS``.
        rng: what is drawn from.
    """
    seen = set()
    while True:
        problem = draw(rng, rng.choice(LEVELS[level]))
        if split_of(problem.question) == split and problem.question not in seen:
            seen.add(problem.question)
            yield problem


def solution(problem: WordProblem, rng: random.Random) -> str:
    """Return what a pupil writes; without slips, in one of three styles."""
    [style] = rng.choices([*STYLES], [*STYLES.values()])
    sums = [f"{a} {sign} {b} = {result}" for a, sign, b, result in problem.steps]
    if style == "sentence":
        last = f"The answer is {problem.answer} {problem.unit}."
        return f"We compute {', then '.join(sums)}. {last} #### {problem.answer}"
    work = f"{'; '.join(sums)} " if style == "sums" else ""
    return f"{work}#### {problem.answer}"
