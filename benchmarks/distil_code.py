"""DistIL against GRPO on code: the teacher reads the sandbox's trace of the first failed test.

    python scripts/make_code_model.py --output runs/distil_code/model
    python -m benchmarks.distil_code --tune     # every setting on the tuning seed
    python -m benchmarks.distil_code            # the chosen settings on the judging seeds

All methods start from the same model, which can read such traces (``scripts/make_code_model.py``),
and draw the same tasks (``benchmarks/tiny_functions.py``). GRPO learns from the single bit, whether
all tests pass in the sandbox. DistIL's teacher, the average of the policy, reads the first failed
test with what the call in it returned or raised, or that all tests pass (``SandboxTrace``). All
tests are in the question.
"""

from __future__ import annotations

import json

from benchmarks.distil_study import Study, main


def distil(credit: str) -> list[str]:
    """Return the arguments of DistIL with the sandbox's trace."""
    template = "{feedback}\n\n{prompt}"
    teacher = {"feedback": "callback", "template": template, "needs_gold": True}
    made = {"class_path": "DistIL", "init_args": {"teacher": teacher, "credit": credit}}
    return [f"--model.objective={json.dumps(made)}", "--trainer.callbacks+=SandboxTrace"]


SOURCE = {
    "class_path": "benchmarks.tiny_functions.TinyFunctions",
    "init_args": {"size": 64, "validation_size": 32},
}
TESTS = {"class_path": "CodeTests", "init_args": {"credit": "all"}}
STUDY = Study(
    name="distil_code",
    module="benchmarks.distil_code",
    methods={
        "grpo": ["--model.objective=Clipped"],
        "distil_local": distil("local"),
        "distil": distil("sequence"),
    },
    common=[
        f"--data.source={json.dumps(SOURCE)}",
        "--data.answer_column=test_list",
        "--data.validation_prompts_per_batch=32",
        "--model.sampling.max_new_tokens=32",
        f"--model.rewards={json.dumps({'tests': {'head': TESTS}})}",
        "--model.evaluation.checker=CodeChecker",
        "--trainer.max_epochs=3",  # of 4 rollouts
        "--trainer.check_val_every_n_epoch=3",
    ],
    rates=("1e-4", "3e-4", "1e-3"),
    rollouts=12,
    conditions="CPU, one thread; 12 rollouts; 32 held-out tasks, 8 samples each",
)


if __name__ == "__main__":
    main(STUDY, __doc__)
