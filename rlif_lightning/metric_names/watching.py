"""The figures of evaluations and of callbacks."""

from __future__ import annotations

from rlif_lightning.metric_names.entries import SAME, SYMPTOMS, Logged

_EVAL = "rlif_lightning/evaluation/evaluator.py"
_GUARD = "callbacks/collapse_guard.py"
_MONITOR = "callbacks/entropy_monitor.py"
_OVERCLAIM = "callbacks/overclaim_monitor.py"
_TOKENS = "the rollout's tokens of all ranks; NaN without any"
_TREND = "least squares over the last 20 rollouts, the same on all ranks"
_SCHEDULER = "callbacks/kl_cov_scheduler.py"
_STARE = "callbacks/stare_controller.py"
_STOPPING = "callbacks/label_free_stopping.py"
_PROBLEMS = "mean over the problems of all ranks, each counted once"
_SAMPLES = "mean over the samples of all problems, all ranks"

WATCHING = {
    "<stage>/accuracy": Logged("share", "Samples that are right.", _PROBLEMS, _EVAL),
    "<stage>/pass@<k>": Logged(
        "share", "Chance that one of k samples is right, estimated without bias.", _PROBLEMS, _EVAL
    ),
    "<stage>/maj@<k>": Logged(
        "share", "Problems whose most frequent answer of k samples is right.", _PROBLEMS, _EVAL
    ),
    "<stage>/greedy_accuracy": Logged(
        "share", "Problems whose greedy completion is right.", _PROBLEMS, _EVAL
    ),
    "<stage>/agreement": Logged(
        "share", "Largest cluster of a problem's samples with an answer.", _PROBLEMS, _EVAL
    ),
    "<stage>/diversity": Logged(
        "share", "Distinct answers of a problem to its samples.", _PROBLEMS, _EVAL
    ),
    "<stage>/parseable": Logged("share", "Samples with an answer.", _SAMPLES, _EVAL),
    "<stage>/ended": Logged("share", "Samples that ended by themselves.", _SAMPLES, _EVAL),
    "<stage>/length": Logged("tokens", "Length of a sample.", _SAMPLES, _EVAL),
    "<stage>/entropy": Logged(
        "nats",
        "Token entropy, before `top_k` and `top_p`.",
        "mean over the tokens of all samples, all ranks",
        _EVAL,
    ),
    "guard/vote_alignment": Logged(
        "correlation",
        "Inside groups: a completion's advantage against the share that gives its answer.",
        "sums over the completions of all ranks; NaN where no group is mixed",
        SYMPTOMS,
    ),
    "guard/certainty_share": Logged(
        "share",
        "Sum of `reward/<head>/share` over the heads that reward certainty; of a rubric, the share"
        " of its weights that does.",
        SAME,
        _GUARD,
    ),
    "guard/alarms": Logged("alarms", "Alarms that are active.", SAME, _GUARD),
    "entropy/p10": Logged("nats", "10th percentile of token entropy.", _TOKENS, _MONITOR),
    "entropy/p50": Logged("nats", "Median of token entropy.", _TOKENS, _MONITOR),
    "entropy/p90": Logged("nats", "90th percentile of token entropy.", _TOKENS, _MONITOR),
    "entropy/slope": Logged(
        "nats per rollout",
        "Trend of `policy/entropy`, by least squares over the last 20 rollouts; NaN in the first.",
        SAME,
        _MONITOR,
    ),
    "kl_cov/weight": Logged("weight", "KL-Cov's weight in this rollout.", SAME, _SCHEDULER),
    "kl_cov/fraction": Logged("share", "KL-Cov's fraction in this rollout.", SAME, _SCHEDULER),
    "stare/gate": Logged("0 or 1", "Whether STARE's weights apply.", SAME, _STARE),
    "stare/positive_weight": Logged("weight", "STARE's weight where A > 0.", SAME, _STARE),
    "stare/negative_weight": Logged("weight", "STARE's weight where A < 0.", SAME, _STARE),
    "overclaim/share": Logged(
        "share",
        "Completions to which the proxy says yes and gold says no (OverclaimMonitor).",
        "mean over the completions of all ranks with both scores; NaN without any",
        _OVERCLAIM,
    ),
    "overclaim/proxy_slope": Logged(
        "score per rollout", "Trend of the proxy's mean score.", _TREND, _OVERCLAIM
    ),
    "overclaim/gold_slope": Logged(
        "score per rollout", "Trend of the gold reward's mean score.", _TREND, _OVERCLAIM
    ),
    "stopping/stopped": Logged(
        "0 or 1", "Whether LabelFreeStopping has ended the run.", SAME, _STOPPING
    ),
}
