"""The pictures of figures that every run has under the same names."""

from __future__ import annotations

from callbacks.report.curves import Panel, Series

FIXED = (
    Panel(
        "agreement",
        "Answers",
        "Agreement",
        "share",
        "A vote has no effect in unanimous groups: from there on certainty alone trains the policy."
        " Where one answer rises over all prompts (CollapseGuard), the policy ignores its prompts.",
        (
            Series("vote/largest_cluster", "group's largest answer"),
            Series("vote/unanimous", "groups of one answer"),
            Series("vote/top_answer", "one answer, over all prompts"),
            Series("vote/kept", "groups that VoteBand keeps"),
            Series("vote/positive", "groups with a positive answer (SCRL)"),
            Series("vote/negative", "completions with a negative answer (SCRL)"),
        ),
        is_share=True,
    ),
    Panel(
        "majorities",
        "Answers",
        "Majorities that change",
        "share",
        "Of problems that come back (CollapseGuard). Many flips mean that the vote has no settled"
        " answer; few at a rising ratio, that it hardens, right or wrong.",
        (
            Series("vote/flip_rate", "problems with another majority than before"),
            Series("vote/flips", "the same, a first visit as none (FlipWeight)"),
            Series("vote/majority_ratio", "largest answer, last 5 visits"),
        ),
        is_share=True,
    ),
    Panel(
        "distinct_answers",
        "Answers",
        "Distinct answers in a batch",
        "answers",
        "Falls towards 1 when the policy gives one answer whatever the prompt.",
        (Series("vote/distinct_answers", "distinct answers"),),
    ),
    Panel(
        "entropy",
        "Policy",
        "Token entropy",
        "nats",
        "The band runs from the 10th to the 90th percentile of a rollout's tokens"
        " (EntropyMonitor). Near 0 the policy has nothing left to explore; a steep rise is another"
        " collapse.",
        (
            Series("policy/entropy", "mean"),
            Series("dynamic/first_entropy", "mean, all groups drawn first"),
            Series("entropy/p50", "median, band p10 to p90", low="entropy/p10", high="entropy/p90"),
        ),
    ),
    Panel(
        "length",
        "Completions",
        "Completion length",
        "tokens",
        "Certainty favours short completions, a vote may favour long ones: a drift is the first"
        " sign of either.",
        (Series("rollout/length", "mean length"),),
    ),
    Panel(
        "completeness",
        "Completions",
        "Completions that end and answer",
        "share",
        "The first two are near 1 in a healthy run. Repeated 4-grams (CollapseGuard) stay where"
        " they began.",
        (
            Series("rollout/ended", "ended by itself"),
            Series("rollout/parseable", "has an answer"),
            Series("rollout/repetition", "repeated 4-grams"),
        ),
        is_share=True,
    ),
    Panel(
        "vote_alignment",
        "Rewards",
        "Whether updates follow the vote",
        "correlation",
        "Inside groups, of a completion's advantage with the share of its group that gives its"
        " answer (CollapseGuard). Near 0 updates no longer favour what a group agrees on.",
        (Series("guard/vote_alignment", "advantage and vote"),),
    ),
    Panel(
        "certainty_share",
        "Rewards",
        "Share of |advantage| from certainty",
        "share",
        "Of all heads that reward the policy's own certainty (CollapseGuard). Near 1 it drives"
        " itself.",
        (Series("guard/certainty_share", "certainty heads"),),
        is_share=True,
    ),
    Panel(
        "alarms",
        "Policy",
        "Active alarms",
        "alarms",
        "Of CollapseGuard's detectors; the events name them.",
        (Series("guard/alarms", "alarms"),),
    ),
    Panel(
        "sampler_gap",
        "Policy",
        "How far the sampler is from the policy",
        "|log-prob difference|, nats",
        "Rounding alone, unless the sampler has other weights or computes otherwise. Below the"
        " noise floor KL-Cov takes a difference for rounding.",
        (
            Series("policy/sampler_gap", "mean, when sampled"),
            Series("policy/noise_floor", "noise floor"),
            Series("rollout/engine_gap", "mean, an engine's own log-probs"),
        ),
        log=True,
    ),
    Panel(
        "log_ratio",
        "Policy",
        "How far an update moves tokens",
        "|log ratio|, nats",
        "KL-Cov penalises this on the tokens that it picked; near 1e-3 a weight of 0.05 cannot be"
        " felt.",
        (
            Series("policy/log_ratio_picked", "picked tokens"),
            Series("policy/log_ratio", "all tokens"),
        ),
    ),
    Panel(
        "picked",
        "Policy",
        "Tokens that the objective singles out",
        "share of trained tokens",
        "Picked by KL-Cov or Clip-Cov; clipped by the surrogate.",
        (Series("policy/picked_fraction", "picked"), Series("policy/clip_fraction", "clipped")),
    ),
    Panel(
        "kl_cov_weight",
        "Policy",
        "KL-Cov's weight",
        "weight",
        "As set by KLCovScheduler.",
        (Series("kl_cov/weight", "weight"),),
    ),
    Panel(
        "stare_weights",
        "Policy",
        "STARE's weights in force",
        "weight",
        "On surprising tokens, as STAREController applies them. 1 is clipped GRPO, as in every"
        " rollout whose gate is off.",
        (
            Series("stare/positive_weight", "where A > 0"),
            Series("stare/negative_weight", "where A < 0"),
        ),
        from_zero=False,
    ),
    Panel(
        "stare_gate",
        "Policy",
        "STARE's gate",
        "0 or 1",
        "1 while the token entropy is below STAREController's target.",
        (Series("stare/gate", "gate"),),
    ),
    Panel(
        "grad_norm",
        "Optimisation",
        "Gradient norm before clipping",
        "norm",
        "A jump of a decade often comes before a collapse.",
        (Series("policy/grad_norm", "mean of its updates"),),
        from_zero=False,
        log=True,
    ),
    Panel(
        "learning_rate",
        "Optimisation",
        "Learning rate",
        "learning rate",
        "After each rollout.",
        (Series("policy/learning_rate", "learning rate"),),
    ),
    Panel(
        "reference_kl",
        "Policy",
        "KL to the reference model",
        "nats per token (k3)",
        "0 where the objective has no reference.",
        (Series("policy/reference_kl", "reference KL"),),
    ),
    Panel(
        "signal",
        "Rewards",
        "Groups with signal at the first draw",
        "share",
        "Groups in which the scores of a deciding head differ (dynamic sampling); the others are"
        " drawn again or skipped.",
        (Series("dynamic/signal", "groups with signal"),),
        is_share=True,
    ),
    Panel(
        "replay_kl",
        "Policy",
        "KL of old groups' policies to the present one",
        "nats",
        "Of replayed tokens, by k3. It rises with the age of the groups and with the step size.",
        (Series("replay/kl", "replayed tokens"),),
    ),
    Panel(
        "staleness",
        "Completions",
        "Age of the weights that drew the completions",
        "rollouts",
        "Counted in rollouts that the policy was trained on since; 0 unless a server draws ahead.",
        (
            Series("rollout/staleness", "mean"),
            Series("rollout/staleness_max", "oldest"),
        ),
    ),
    Panel(
        "turns",
        "Completions",
        "Turns of an episode",
        "turns",
        "Under an environment. Few turns of a task that needs more mean that the policy gives up.",
        (Series("episode/turns", "mean"),),
    ),
    Panel(
        "solved",
        "Answers",
        "Solved episodes",
        "share",
        "Of held-out problems, as their environment says; an episode that failed is not solved.",
        (Series("val/solved", "held-out", low="val_low/solved", high="val_high/solved"),),
        is_share=True,
    ),
    Panel(
        "stops",
        "Completions",
        "How episodes end",
        "share",
        "By the environment, by a limit of the run, or by a failure. Many that run out of turns or"
        " tokens need a larger limit.",
        (
            Series("episode/completed", "the task ended"),
            Series("episode/truncated", "the environment's limit"),
            Series("episode/max_turns", "out of turns"),
            Series("episode/max_sampled_tokens", "out of tokens"),
            Series("episode/max_observation_tokens", "no room for an observation"),
            Series("episode/environment_error", "an error of the environment"),
            Series("episode/environment_timeout", "no answer in time"),
        ),
        is_share=True,
    ),
    Panel(
        "time",
        "Optimisation",
        "Time of a rollout's phases",
        "seconds",
        "Wall-clock time on the run's own machine, one above the other.",
        (
            Series("time/rollout", "sampling"),
            Series("time/reward", "rewards"),
            Series("time/update", "update"),
        ),
        kind="stack",
    ),
)
