"""The figures of rollouts, rewards and updates."""

from __future__ import annotations

from rlif_lightning.metric_names.entries import ALL_GROUPS, SAME, SYMPTOMS, Logged

_VOTES = "rlif_lightning/rewards/voting.py"
_SCORES = "rlif_lightning/learning/rollout_advantages.py"
_JUDGES = "rlif_lightning/judges/asking.py"
_ANSWER_TOKENS = "rlif_lightning/learning/answer_tokens.py"
_RUBRIC = "rlif_lightning/rewards/rubric.py"
_UPDATES = "rlif_lightning/learning/update_metrics.py"
_DYNAMIC = "rlif_lightning/learning/dynamic_sampling.py"
_OLD = "rlif_lightning/learning/old_logprobs.py"
_REPLAYED = "mean over the replayed tokens of all updates, all ranks; NaN without any"
_MODULE = "rlif_lightning/module.py"
_LESSONS = "rlif_lightning/learning/lessons.py"
_UPDATER = "rlif_lightning/learning/updater.py"
_SCORED = "all scores of all ranks but NaN; NaN without any"
_STD = "standard deviation, ddof 1"
_ALL_COMPLETIONS = "mean over the completions of all ranks"
_ALL_QUESTIONS = "mean over the questions of all ranks"
_JUDGED_GROUPS = "mean over groups and criteria with a verdict, all ranks"
_ALL_TOKENS = "mean over the rollout's tokens of all ranks; NaN without any"
_TRAINED = "mean over the rollout's own tokens trained on in all its updates, all ranks"
_TAUGHT = "mean over the taught tokens of all updates, all ranks; NaN without any"
_PICKED = "mean over the picked ones of these tokens, all ranks; 0 without any"
_L2 = "L2 over the log-probs of the rollout's tokens of all ranks, at ratio 1, as of one update"
_FIRST = "the tokens of the rollout's first mini-batch, all ranks"
_ALL_RANKS = "sum over all ranks"
_EACH = "mean over processes"

TRAINING = {
    "reward/<head>/mean": Logged(
        "score", "A head's score; the unit is the head's own.", f"mean over {_SCORED}", _SCORES
    ),
    "reward/<head>/std": Logged(
        "score", "Spread of a head's scores over everything.", f"{_STD}, over {_SCORED}", _SCORES
    ),
    "reward/<head>/group_std": Logged(
        "score",
        f"Spread of scores inside a group ({_STD}), all that advantages see.",
        "mean over the groups of all ranks that have two scores or more; NaN without any",
        _SCORES,
    ),
    "reward/<head>/share": Logged(
        "share",
        "This head's part of the sum of |advantage parts|; 0 where no completion has an advantage.",
        "sums over the completions of all ranks",
        _SCORES,
    ),
    "reward/<head>/gradient_norm": Logged(
        "loss per nat", "Norm of the head's share of the policy loss's gradient.", _L2, _SCORES
    ),
    "reward/<head>/<figure>": Logged(
        "as `<figure>`",
        "A figure of this head whose name another figure has, such as a second vote's.",
        "as `<figure>`",
        _SCORES,
    ),
    "reward/<head>/first_mean": Logged(
        "score", "A head's score in the first draws, all groups.", f"mean over {_SCORED}", _DYNAMIC
    ),
    "dynamic/signal": Logged("share", "First draws with signal.", ALL_GROUPS, _DYNAMIC),
    "dynamic/extra_groups": Logged("groups", "Groups of further draws.", _ALL_RANKS, _DYNAMIC),
    "dynamic/empty_places": Logged("groups", "Places without signal.", _ALL_RANKS, _DYNAMIC),
    "dynamic/discarded_tokens": Logged(
        "tokens", "Drawn tokens of groups that are not in the update.", _ALL_RANKS, _DYNAMIC
    ),
    "dynamic/first_entropy": Logged(
        "nats", "As `policy/entropy`, of the first draws.", _ALL_TOKENS, _DYNAMIC
    ),
    "answer/located": Logged(
        "share",
        "Answers whose tokens are located (`model.answer_tokens`).",
        "sums over the completions with an answer of all ranks; NaN without any",
        _ANSWER_TOKENS,
    ),
    "answer/tokens": Logged(
        "share",
        "Tokens that are part of a located answer.",
        "sums over the tokens of all ranks",
        _ANSWER_TOKENS,
    ),
    "judge/questions": Logged("questions", "Completions asked about.", _ALL_RANKS, _JUDGES),
    "judge/calls": Logged(
        "calls",
        "Calls of the judge, failed ones too; remembered replies are none.",
        _ALL_RANKS,
        _JUDGES,
    ),
    "judge/cost": Logged(
        "currency of judge.prices", "Of all calls, where prices are set.", _ALL_RANKS, _JUDGES
    ),
    "judge/failed": Logged("share", "Questions whose calls failed: NaN.", _ALL_QUESTIONS, _JUDGES),
    "judge/unparsed": Logged(
        "share",
        "Completions whose reply has no verdict that can be read.",
        _ALL_COMPLETIONS,
        "rlif_lightning/rewards/judged.py",
    ),
    "judge/steps": Logged(
        "steps",
        "Steps of a completion that is asked about (StepRubricJudgeHead).",
        _ALL_COMPLETIONS,
        "rlif_lightning/rewards/judged_steps.py",
    ),
    "judge/prompt_tokens": Logged("tokens", "Tokens of questions.", _ALL_RANKS, _JUDGES),
    "judge/completion_tokens": Logged("tokens", "Tokens of replies.", _ALL_RANKS, _JUDGES),
    "code/solved": Logged(
        "share",
        "Completions whose code passes all tests of its problem (CodeTests).",
        _ALL_COMPLETIONS,
        "rlif_lightning/rewards/code.py",
    ),
    "rubric/static": Logged(
        "score",
        "Score of a rubric with its criteria's own weights, whatever it is trained with (Rubric).",
        f"mean over {_SCORED}",
        _RUBRIC,
    ),
    "rubric/strict": Logged(
        "share", "Completions for which every required criterion holds.", _ALL_COMPLETIONS, _RUBRIC
    ),
    "rubric/saturated": Logged(
        "share", "Criteria that hold for a whole group.", _JUDGED_GROUPS, _RUBRIC
    ),
    "rubric/unreachable": Logged(
        "share", "Criteria that hold for nothing of a group.", _JUDGED_GROUPS, _RUBRIC
    ),
    "rubric/unjudged": Logged(
        "share", "Verdicts that are missing.", "mean over completions and criteria", _RUBRIC
    ),
    "rubric/factor_mean": Logged(
        "factor", "POW3R's factors in force.", "mean over groups and criteria, all ranks", _RUBRIC
    ),
    "rubric/factor_std": Logged(
        "factor", "Their standard deviation, ddof 0.", "groups and criteria, all ranks", _RUBRIC
    ),
    "criterion/<criterion>": Logged(
        "share",
        "Completions for which a criterion of a rubric holds.",
        "mean over the verdicts of all ranks; NaN without any",
        _RUBRIC,
    ),
    "rollout/length": Logged(
        "tokens",
        "Length of a completion; completions that a head takes out are left out.",
        "mean over the remaining completions of all ranks; NaN without any",
        _SCORES,
    ),
    "rollout/ended": Logged(
        "share", "Completions that ended by themselves.", _ALL_COMPLETIONS, _SCORES
    ),
    "rollout/parseable": Logged(
        "share", "Completions that a vote found an answer in.", _ALL_COMPLETIONS, _VOTES
    ),
    "rollout/repetition": Logged(
        "share",
        "4-grams of tokens that stood in the same completion before (CollapseGuard).",
        "sums over the 4-grams of all ranks",
        SYMPTOMS,
    ),
    "rollout/engine_gap": Logged(
        "nats", "|log-prob of an engine with its own - the policy's|.", _ALL_TOKENS, _SCORES
    ),
    "rollout/engine_gap_max": Logged(
        "nats", "The same, largest.", "largest of the tokens of all ranks", _SCORES
    ),
    "rollout/engine_weight": Logged(
        "factor", "Weight of a token's loss that corrects for that.", _ALL_TOKENS, _SCORES
    ),
    "rollout/engine_bounded": Logged(
        "share", "Tokens whose weight `max_ratio` bounds (`correction`).", _ALL_TOKENS, _SCORES
    ),
    "rollout/staleness": Logged(
        "rollouts",
        "Trained on since the policy had the weights that drew a completion.",
        _ALL_COMPLETIONS,
        _SCORES,
    ),
    "rollout/staleness_max": Logged("rollouts", "The same, largest.", "all completions", _SCORES),
    "rollout/tokens_per_second": Logged(
        "tokens per second",
        "Tokens sampled by all ranks, per second of time/rollout on a process's own clock.",
        _EACH,
        _MODULE,
    ),
    "policy/entropy": Logged(
        "nats", "Entropy of the next token under the sampling policy.", _ALL_TOKENS, _SCORES
    ),
    "policy/log_ratio": Logged(
        "nats", "|log-prob - old log-prob| at the forward before each step.", _TRAINED, _UPDATES
    ),
    "policy/log_ratio_picked": Logged(
        "nats", "The same, of tokens that the objective picked.", _PICKED, _UPDATES
    ),
    "policy/entropy_picked": Logged(
        "nats", "Token entropy, of tokens that the objective picked.", _PICKED, _UPDATES
    ),
    "policy/picked_fraction": Logged(
        "share", "Tokens that the objective picked.", _TRAINED, _UPDATES
    ),
    "policy/clip_fraction": Logged(
        "share", "Tokens that the clip holds, but for those with another loss.", _TRAINED, _UPDATES
    ),
    "policy/reference_kl": Logged(
        "nats", "KL to the reference model, estimated by k3; 0 without one.", _TRAINED, _UPDATES
    ),
    "policy/sampler_gap": Logged(
        "nats",
        "|log-prob of the first training forward - that of sampling|: rounding, or another policy.",
        f"mean over {_FIRST}",
        _OLD,
    ),
    "policy/noise_floor": Logged(
        "nats",
        "|log-prob of the first training forward - old log-prob| that one token in a thousand"
        " exceeds.",
        f"upper quantile of {_FIRST}",
        _OLD,
    ),
    "policy/grad_norm": Logged(
        "norm", "Gradient norm before clipping.", "mean over the rollout's updates", _UPDATER
    ),
    "policy/learning_rate": Logged(
        "learning rate", "Learning rate after the rollout's last update.", SAME, _MODULE
    ),
    "replay/groups": Logged("groups", "Old groups in the updates.", "count, all ranks", _UPDATER),
    "replay/age": Logged(
        "rollouts", "Rollouts since it was drawn.", "mean over old groups", _UPDATER
    ),
    "replay/ratio": Logged("factor", "Importance ratio before any bound.", _REPLAYED, _UPDATES),
    "replay/kl": Logged("nats", "KL(policy that drew || present), by k3.", _REPLAYED, _UPDATES),
    "replay/clip_fraction": Logged("share", "As `policy/clip_fraction`.", _REPLAYED, _UPDATES),
    "teacher/coverage": Logged(
        "share",
        "Completions with feedback, the only ones that are trained on.",
        _ALL_COMPLETIONS,
        _LESSONS,
    ),
    "teacher/divergence": Logged(
        "nats",
        "Divergence from the teacher's distribution, as the objective has it.",
        _TAUGHT,
        _UPDATES,
    ),
    "teacher/tail": Logged(
        "share", "The teacher's probability of all tokens but its top_k.", _TAUGHT, _UPDATES
    ),
    "update/tokens": Logged(
        "tokens",
        "Positions that training passes were run on, prompts and padding among them.",
        "sum over all updates of the rollout, all ranks",
        _UPDATES,
    ),
    "update/padding": Logged(
        "share", "Positions of these without a token.", "sums over all updates, all ranks", _UPDATES
    ),
    "update/micro_batch_tokens": Logged(
        "tokens", "Token budget of a pass, after any halving for memory.", _EACH, _UPDATER
    ),
    "update/tokens_per_second": Logged(
        "tokens per second", "`update/tokens`, per second of a process's own clock.", _EACH, _MODULE
    ),
    "time/rollout": Logged("seconds", "Wall time of sampling or waiting.", _EACH, _MODULE),
    "time/reward": Logged("seconds", "Wall time of rewards and advantages.", _EACH, _MODULE),
    "time/judge": Logged(
        "seconds", "The part of time/reward that waits for judges.", _EACH, _JUDGES
    ),
    "time/update": Logged("seconds", "Wall time of all updates of the rollout.", _EACH, _MODULE),
}
