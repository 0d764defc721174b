"""The figures of a checker: what evidence says of claims, and what its monitor watches."""

from __future__ import annotations

from rlif_lightning.metric_names.entries import SAME, Logged

_HEAD = "rlif_lightning/rewards/checker.py"
_MONITOR = "callbacks/checker_monitor.py"
_VERDICTS = "mean over the claims of all ranks with a verdict; NaN without any"
_COMPLETIONS = "mean over the completions of all ranks"

CHECKING = {
    "checker/support": Logged("share", "Claims that evidence supports.", _VERDICTS, _HEAD),
    "checker/neutral": Logged("share", "Claims that evidence says nothing of.", _VERDICTS, _HEAD),
    "checker/contradiction": Logged("share", "Claims that evidence contradicts.", _VERDICTS, _HEAD),
    "checker/unjudged": Logged(
        "share",
        "Claims without a verdict.",
        "mean over the claims of all ranks that have evidence; NaN without any",
        _HEAD,
    ),
    "checker/claims": Logged(
        "claims", "Claims of a completion that have evidence.", _COMPLETIONS, _HEAD
    ),
    "checker/phi": Logged(
        "score",
        "Sign times confidence, mean over a completion's claims, in [-1, 1].",
        "mean over the completions of all ranks with one; NaN without any",
        _HEAD,
    ),
    "checker/answer_length": Logged(
        "characters", "Length of the part that makes claims.", _COMPLETIONS, _HEAD
    ),
    "checker/no_search": Logged("share", "Completions without a search.", _COMPLETIONS, _MONITOR),
    "checker/foreign": Logged(
        "share",
        "Letters of completions in a script without a letter in the prompt.",
        "letters of the completions of all ranks; NaN without any",
        _MONITOR,
    ),
    "checker/alarms": Logged("alarms", "Alarms of CheckerMonitor that are active.", SAME, _MONITOR),
}
