"""What was predicted of the collapse study before its runs, and what became of it.

Each prediction names arms, a number, and so the rule by which it is judged
(``benchmarks/study_rules.py``). All are judged on the seeds of ``study_arms.JUDGING`` alone, and
only when all of their runs have been made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from benchmarks.results import Rows
from benchmarks.study_arms import FEW, TWO
from benchmarks.study_rows import Run
from benchmarks.study_rules import Alarms, Falls, Gap, Ranks, Rule, Runs, Spread, Warns, rule_text

FALL, STAY = (5, 6), (0, 1)  # of six seeds
FEW_FALL, FEW_STAY = (2, 3), (0, 1)  # of three
INF = math.inf


def claims() -> Sequence[tuple[str, Rule]]:
    """Return the predictions about what carries the claim: guard, rate, second reward."""
    return (
        ("The vote falls at the hot rate", Falls("vote-hot", *FALL)),
        ("The paper's pair falls at the hot rate", Falls("paper-hot", *FALL)),
        ("The preset without its guard falls at the hot rate", Falls("preset-hot", *FALL)),
        ("Gold answers stay at the hot rate", Falls("gold-hot", *STAY)),
        ("The preset with its guard stays at the hot rate", Falls("preset-hot-guard", *STAY)),
        ("The vote alone stays at a quarter of the rate", Falls("vote-quarter", *STAY)),
        ("The preset without guard stays there", Falls("preset-quarter", *STAY)),
        ("The paper's pair falls even there", Falls("paper-quarter", *FALL)),
        (
            "The guard at the hot rate does no more than a constant quarter",
            Gap("preset-hot-guard", "preset-quarter", -INF, 3),
        ),
        (
            "At a quarter of the rate the guard changes nothing",
            Gap("preset-quarter-guard", "preset-quarter", -3, 3),
        ),
        (
            "At a quarter the second reward and the reference KL change nothing",
            Gap("preset-quarter", "vote-quarter", -3, 3),
        ),
        ("At a quarter the vote is as good as gold", Gap("vote-quarter", "gold-quarter", -3, 3)),
        (
            "A quarter is not merely slower: better at the same summed rate of 75",
            Gap("vote-quarter", "vote-hot", 2, INF, summed=75),
        ),
    )


def controls() -> Sequence[tuple[str, Rule]]:
    """Return the predictions about the guard's controls, and about noise."""
    guard = "preset-hot-guard"
    return (
        (
            "Another seed's guarded rates do as well as the guard",
            Gap("preset-hot-yoked", guard, -3, 3),
        ),
        (
            "Halving at rollouts 12 and 20 does as well as the guard",
            Gap("preset-hot-halved", guard, -3, 3),
        ),
        (
            "A guard that lowers the vote's weight at the hot rate does not save the run",
            Falls("preset-hot-guard_vote", *FALL),
        ),
        ("The guard keeps the vote alone", Falls("vote-hot-guard", *STAY)),
        ("The guard costs gold answers nothing", Gap("gold-hot-guard", "gold-hot", -3, INF)),
        ("The guard does not save the paper's pair", Falls("paper-hot-guard", *FALL)),
        ("At half of the rate the vote falls on some seeds", Falls("vote-half", 2, 5)),
        ("An eighth of the rate is slower, not safer", Gap("vote-eighth", "vote-quarter", -10, 1)),
        ("A coin destroys the model at the hot rate", Falls("random-hot", *FALL)),
        ("A coin destroys it at a quarter too", Falls("random-quarter", *FALL)),
        ("The vote stays for 1,200 rollouts", Falls("vote-quarter", *STAY, rollouts=1200)),
        ("So does the preset without guard", Falls("preset-quarter", *STAY, rollouts=1200)),
        ("So does the preset with guard", Falls(guard, *STAY, rollouts=1200)),
        (
            "At the same summed rate of 300 the quarter is far above the hot rate",
            Gap("vote-quarter", "vote-hot", 50, INF, summed=300),
        ),
        (
            "The guard's present defaults keep the preset at the hot rate",
            Falls("preset-hot-guard_now", *STAY),
        ),
        *parts(),
    )


def parts() -> Sequence[tuple[str, Rule]]:
    """Return the predictions about the preset's parts, and about a reference KL for the pair."""
    return (
        (
            "At a quarter the reference KL alone keeps the vote for 1,200 rollouts",
            Falls("vote-quarter-kl", *STAY, rollouts=1200),
        ),
        (
            "The second reward without the reference KL does not",
            Falls("preset-quarter-no_kl", 2, 6, rollouts=1200),
        ),
        ("At the hot rate the reference KL does not keep the vote", Falls("vote-hot-kl", 4, 6)),
        ("Nor does the second reward without it", Falls("preset-hot-no_kl", *FALL)),
        (
            "With the paper's weight of the reference KL its pair falls at a quarter all the same",
            Falls("paper-quarter-kl0.005", *FALL),
        ),
        (
            "With the preset's weight it falls on half of the seeds at least",
            Falls("paper-quarter-kl0.03", 3, 6),
        ),
    )


def warnings() -> Sequence[tuple[str, Rule]]:
    """Return the predictions about the guard's alarms."""
    return (
        ("An alarm comes before each loss of the vote", Alarms("vote-hot", 6, "before loss")),
        ("... and of the paper's pair", Alarms("paper-hot", 6, "before loss")),
        (
            "The alarm cannot tell: the vote that stays raises it too",
            Alarms("vote-quarter", 5, "any"),
        ),
    )


def penalties() -> Sequence[tuple[str, Rule]]:
    """Return the predictions about KL-Cov, on three seeds."""
    cells = ("no_kl_cov", "w0.05-f0.2", "w1-f0.02", "w1-f0.2", "w10-f0.02", "w10-f0.2")
    lines: list[tuple[str, Rule]] = [
        (f"KL-Cov does not save the pair: {cell}", Falls(f"paper-hot-{cell}", *FEW_FALL, seeds=FEW))
        for cell in cells
    ]
    lines.append(
        (
            "The pair falls at one update a rollout too",
            Falls("paper-hot-one_update", *FEW_FALL, seeds=FEW),
        )
    )
    lines.append(
        ("Seeds of one arm spread more than KL-Cov's reported effects", Spread("paper-hot", 2.2))
    )
    return lines


def problems() -> Sequence[tuple[str, Rule]]:
    """Return what He et al. (2603.08660) predict of the number of distinct problems."""
    lines: list[tuple[str, Rule]] = []
    for recipe in ("vote", "certainty", "paper"):
        for size, expected in ((32, FEW_STAY), (128, FEW_STAY), (512, FEW_FALL)):
            word = "stay" if expected == FEW_STAY else "fall"
            text = f"He et al.: {recipe} on {size} problems must {word}"
            lines.append((text, Falls(f"{recipe}-hot-{size}", *expected, seeds=FEW)))
    return lines


def others() -> Sequence[tuple[str, Rule]]:
    """Return what others predict of groups and tokens that are left out."""
    return (
        (
            "OM-GRPO (2608.03119): no gradient on the answer's tokens: no fall",
            Falls("vote-hot-answer0", *FEW_STAY, seeds=FEW),
        ),
        (
            "OM-GRPO: half of it there is worse than none",
            Gap("vote-hot-answer0.5", "vote-hot-answer0", -INF, 0, seeds=FEW),
        ),
        (
            "OM-GRPO: and so are three quarters",
            Gap("vote-hot-answer0.75", "vote-hot-answer0", -INF, 0, seeds=FEW),
        ),
        (
            "2605.22217: groups with a vote share of .3 to .9 only: no fall",
            Falls("vote-hot-band", *FEW_STAY, seeds=FEW),
        ),
        (
            "CuMa (2511.04902): groups without a majority left out: no fall",
            Falls("vote-hot-majority", *FEW_STAY, seeds=FEW),
        ),
        (
            "SRT (2505.21444): labels from the frozen start: no fall",
            Falls("vote-hot-offline", *FEW_STAY, seeds=FEW),
        ),
        (
            "SRT: and 6 to 10 points less than gold answers",
            Gap("vote-hot-offline", "gold-hot", -10, -6, seeds=FEW),
        ),
        (
            "SRT: at a quarter of the rate too",
            Gap("vote-quarter-offline", "gold-quarter", -10, -6, seeds=FEW),
        ),
    )


def indicators() -> Sequence[tuple[str, Rule]]:
    """Return the predictions about two label-free figures of 2605.19444, of 48 runs."""
    flips, ratio = "flip_rate", "majority_ratio"
    return (
        ("Flips lead at most half of the losses", Warns(flips, 0, 12, "before")),
        ("They are there when the accuracy is lost", Warns(flips, 20, 48, "by the loss")),
        ("They are seldom raised in vain", Warns(flips, 0, 2, "in vain")),
        (
            "A high majority ratio cannot tell: runs that stay have it",
            Warns(ratio, 20, 48, "in vain"),
        ),
    )


def family() -> Sequence[tuple[str, Rule]]:
    """Return the predictions about the second family, of byte-pair tokens and word problems."""

    def falls(arm: str, counts: tuple[int, int]) -> Rule:
        return Falls(f"{arm}-words", *counts, seeds=FEW)

    return (
        ("The vote falls at the hot rate here too", falls("vote-hot", FEW_FALL)),
        ("So does the paper's pair", falls("paper-hot", FEW_FALL)),
        ("Gold answers stay", falls("gold-hot", FEW_STAY)),
        ("The vote stays at a quarter of the rate", falls("vote-quarter", FEW_STAY)),
        ("So does the preset without guard", falls("preset-quarter", FEW_STAY)),
        ("The paper's pair falls even there", falls("paper-quarter", FEW_FALL)),
        (
            "Right majorities at the start rank the ends",
            Ranks("vote-quarter-words*", 0.7, seeds=FEW),
        ),
    )


def smollm2() -> Sequence[tuple[str, Rule]]:
    """Return what is predicted of SmolLM2-135M on published word problems."""

    def falls(arm: str, low: int, high: int) -> Falls:
        return Falls(f"{arm}-smollm2", low, high, rollouts=270, seeds=TWO)

    vote, gold = "vote-quarter-smollm2", "gold-quarter-smollm2"
    return (
        ("Gold answers stay at the hot rate", falls("gold-hot", 0, 0)),
        ("The vote falls there", falls("vote-hot", 1, 2)),
        ("Self-certainty falls there", falls("certainty-hot", 2, 2)),
        ("So does the paper's pair", falls("paper-hot", 2, 2)),
        ("The vote stays at a quarter of the rate", falls("vote-quarter", 0, 0)),
        ("So does the preset without guard", falls("preset-quarter", 0, 0)),
        ("The paper's pair falls even there", falls("paper-quarter", 1, 2)),
        (
            "At a quarter the vote gains less than gold answers",
            Gap(vote, gold, -INF, 0, rollouts=270, seeds=TWO),
        ),
    )


GROUPS: dict[str, Callable[[], Sequence[tuple[str, Rule]]]] = {
    "C": claims,
    "G": controls,
    "W": warnings,
    "K": penalties,
    "D": problems,
    "O": others,
    "I": indicators,
    "F": family,
    "S": smollm2,
}


def missing(rule: Rule, runs: Runs) -> int:
    """Return how many of the runs that a rule needs have not been made, or are too short."""
    summed = (isinstance(rule, Gap) and rule.summed) or 0.0
    rollouts = 0 if summed else rule.rollouts

    def is_there(run: Run | None) -> bool:
        if run is None:
            return False
        long_enough = run.rollouts[-1] >= rollouts and run.rates[-1] >= summed - 1e-9
        return long_enough or run.facts["ended by"] == "guard"

    return sum(not is_there(runs.get((arm, s))) for arm in rule.arms for s in rule.seeds)


def verdicts(made: Sequence[Run]) -> Rows:
    """Return the table of predictions: what was said, its rule, the number, and the verdict."""
    runs, table = {(run.arm, run.seed): run for run in made}, {}
    for letter, group in GROUPS.items():
        for number, (text, rule) in enumerate(group(), 1):
            absent, needed = missing(rule, runs), len(rule.arms) * len(rule.seeds)
            value, verdict = (f"{needed - absent} of {needed} runs", "not run yet")
            if not absent:
                value, verdict = rule.judge(runs)
            table[f"{letter}{number}"] = {
                "prediction": text,
                "rule": rule_text(rule),
                "found": value,
                "verdict": verdict,
            }
    return table
