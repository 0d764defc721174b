"""The figures of votes."""

from __future__ import annotations

from rlif_lightning.metric_names.entries import ALL_GROUPS, SYMPTOMS, Logged

_VOTES = "rlif_lightning/rewards/voting.py"
_MAJORITIES = "callbacks/majorities.py"
_SCRL = "rlif_lightning/rewards/scrl.py"
_FLIPS = "rlif_lightning/rewards/flip_weight.py"

VOTING = {
    "vote/largest_cluster": Logged(
        "share",
        "Largest cluster's share of a group's answers; 0 in groups with too few for a vote.",
        ALL_GROUPS,
        _VOTES,
    ),
    "vote/unanimous": Logged(
        "share", "Groups whose answers are all equivalent.", ALL_GROUPS, _VOTES
    ),
    "vote/distinct_answers": Logged(
        "answers",
        "Different answers in the whole batch, units left out.",
        "count over all ranks together",
        _VOTES,
    ),
    "vote/undecided": Logged(
        "share",
        "Groups with answers that count as different because the time to compare them ran out.",
        ALL_GROUPS,
        _VOTES,
    ),
    "vote/top_answer": Logged(
        "share",
        "Completions of all prompts that give the batch's most frequent answer (CollapseGuard).",
        "counts over all ranks together",
        SYMPTOMS,
    ),
    "vote/flip_rate": Logged(
        "share",
        "Problems whose majority is another than at their last visit (CollapseGuard).",
        "those visited before, all ranks; NaN without any",
        _MAJORITIES,
    ),
    "vote/majority_ratio": Logged(
        "share",
        "Largest cluster's share of a problem's completions, over its last 5 visits"
        " (CollapseGuard).",
        "mean over the problems of all ranks",
        _MAJORITIES,
    ),
    "vote/kept": Logged(
        "share",
        "Groups that `VoteBand` keeps in the update.",
        ALL_GROUPS,
        "rlif_lightning/rewards/vote_band.py",
    ),
    "vote/positive": Logged("share", "Groups with an answer that SCRL rewards.", ALL_GROUPS, _SCRL),
    "vote/negative": Logged("share", "Completions whose answer SCRL punishes.", ALL_GROUPS, _SCRL),
    "vote/flips": Logged(
        "share",
        "Groups whose majority is another than at their problem's last visit (FlipWeight).",
        "mean over the groups of all ranks, a first visit as 0",
        _FLIPS,
    ),
    "vote/flip_weight": Logged(
        "factor", "Of the vote's weight in a group (FlipWeight).", ALL_GROUPS, _FLIPS
    ),
}
