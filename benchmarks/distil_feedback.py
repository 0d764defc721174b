"""DistIL against GRPO on sums of which a rule points out the first wrong step.

    python scripts/make_feedback_model.py --output runs/distil/model
    python -m benchmarks.distil_feedback --tune     # every setting on the tuning seed
    python -m benchmarks.distil_feedback            # the chosen settings on the judging seeds

All methods start from the same model, which can read such feedback
(``scripts/make_feedback_model.py``), and draw the same problems. GRPO learns from the single bit,
right or wrong. DistIL's teacher, the average of the policy, reads the first wrong step of a
completion, or that it is right. In ``distil_wrong`` right completions have no feedback and no loss.
"""

from __future__ import annotations

import json

from benchmarks.distil_study import Study, main


def distil(tells_right: bool = True, **settings: object) -> list[str]:
    """Return the arguments of DistIL with the rule's feedback."""
    teacher = {"feedback": "callback", "template": "{feedback}*{prompt}", "needs_gold": True}
    made = {"class_path": "DistIL", "init_args": {"teacher": teacher, **settings}}
    given = {"tells_right": tells_right}
    writer = {"class_path": "benchmarks.wrong_step.FirstWrongStep", "init_args": given}
    return [
        f"--model.objective={json.dumps(made)}",
        f"--trainer.callbacks+={json.dumps(writer)}",
    ]


STUDY = Study(
    name="distil",
    module="benchmarks.distil_feedback",
    methods={
        "grpo": ["--model.objective=Clipped"],
        "distil_local": distil(credit="local"),
        "distil": distil(),
        "distil_wrong": distil(tells_right=False),
    },
    common=[
        '--model.rewards={"gold": {"head": "GoldAnswer"}}',
        "--trainer.limit_train_batches=20",
        "--trainer.check_val_every_n_epoch=1",
    ],
    rates=("3e-5", "1e-4", "3e-4", "1e-3"),
    rollouts=20,
    conditions="CPU, one thread; 20 rollouts; 200 held-out problems, 8 samples each",
)


if __name__ == "__main__":
    main(STUDY, __doc__)
