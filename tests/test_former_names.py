"""Settings of earlier versions, and a fork of nothing, are refused with what to write instead."""

from __future__ import annotations

import pytest

from harness.command_line import base, refused
from rlif_lightning import cli

RENAMED = {
    "--model.learning_rate=1e-5": "model.learning_rate is model.optimizer.lr now",
    "--model.lr_schedule=cosine": "model.lr_schedule is model.schedule.name now",
    "--model.max_grad_norm=1": "model.max_grad_norm is model.update.max_grad_norm now",
    "--data.chat=true": "data.chat is data.format.chat now",
    "--data.prompts_per_step=4": "data.prompts_per_step is data.prompts_per_rollout now",
    "--optimizer.lr=1e-5": "optimizer is model.optimizer now",
    "--model.evaluation.resamples=9": "model.evaluation.resamples is the constant 1000 now",
    "--model.evaluation.confidence=0.9": "model.evaluation.confidence is the constant 0.95 now",
    "--predictions.rows_per_file=9": "predictions.rows_per_file is the constant 4096 now",
}
CALLBACK, WEIGHT = "--trainer.callbacks+=", "--trainer.callbacks.weight"
VOTE = "--model.rewards={vote: {head: {class_path: BehaviourVote, init_args: "
ARGUMENTS = {
    "lowest of CISPO is clip_low = 1 - lowest": [
        "--model.objective=CISPO", "--model.objective.lowest=0",
    ],
    "log_low of GMPO is clip_low": ["--model.objective=GMPO", "--model.objective.log_low=0.1"],
    "agreement of LabelFreeStopping is limits.agreement": [
        f"{CALLBACK}LabelFreeStopping", "--trainer.callbacks.agreement=0.9",
    ],
    "kind of Schedule is said by points, shape (linear, cosine) and target": [
        f"{CALLBACK}KLCovScheduler", f"{WEIGHT}={{kind: linear, start: 1, end: 2, steps: 3}}",
    ],
    "minimum of Sandbox is isolation, with a + behind the level": [
        f"{VOTE}{{sandbox: {{minimum: seccomp}}}}}}}}}}"
    ],
    "target_modules of LoRA is options.target_modules": ["--model.policy.lora.target_modules=[x]"],
    "std_floor of GRPO is the constant 1e-6": [
        "--model.advantage=GRPO", "--model.advantage.std_floor=0",
    ],
    "positive_temperature of SAPO is temperatures[0]": [
        "--model.objective=SAPO", "--model.objective.positive_temperature=2",
    ],
    "scoring_tokens of VLLMEngine is model.update.micro_batch_tokens": [
        "--model.engine=VLLMEngine", "--model.engine.scoring_tokens=9",
    ],
    "floor of EntropyMonitor is in CollapseGuard.detectors: {floor: {metric: policy/entropy, side:"
    " below, bound: ..., window: 1}}": [
        f"{CALLBACK}EntropyMonitor", "--trainer.callbacks.floor=0.3",
    ],
    "file of BenchmarkData is name": [
        "--data.source=BenchmarkData", "--data.source.columns={}", "--data.source.file=x.jsonl",
    ],
    "cpu_seconds of Sandbox is wall_seconds": [f"{VOTE}{{sandbox: {{cpu_seconds: 3}}}}}}}}}}"],
    "window of EntropyMonitor is the constant 20": [
        f"{CALLBACK}EntropyMonitor", "--trainer.callbacks.window=9",
    ],
    "factor of SamplerGap is the constant 4": [
        f"{CALLBACK}SamplerGap", "--trainer.callbacks.factor=9",
    ],
    "entropy_floor of NegativeEntropy is the constant 10": [
        "--model.rewards={rent: {head: {class_path: NegativeEntropy, init_args:"
        " {entropy_floor: 9}}}}",
    ],
    "timeout_per_token of VLLMServerEngine is the constant 0.001 (raise a slow server's timeout)": [
        "--model.engine=VLLMServerEngine", "--model.engine.server=http://localhost:8000",
        "--model.engine.weights_folder=w", "--model.engine.timeout_per_token=0.1",
    ],
    "function_column of BehaviourVote is columns.function": [f"{VOTE}{{function_column: f}}}}}}}}"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("argument", "hint"), RENAMED.items())
def test_a_former_name_is_refused_with_the_present_one(capsys, argument, hint):
    error = refused(capsys, "fit", *base(), argument)
    assert error == f"error: unrecognized arguments: {argument}; {hint}"


def test_former_names_in_a_file_are_refused_with_the_present_ones(capsys, tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("model: {updates_per_rollout: 2}")
    error = refused(capsys, "fit", *base(), f"--config={path}")
    assert "option 'model.updates_per_rollout'; model.updates_per_rollout is" in error
    assert error.endswith("is model.update.updates_per_rollout now")


def every_line(capsys, arguments: list[str]) -> str:
    """What the command line prints as the error, which may have several lines."""
    with pytest.raises(SystemExit):
        cli.main(["fit", *base(), *arguments])
    return capsys.readouterr().err.rpartition("\nerror: ")[2]


@pytest.mark.parametrize(("hint", "arguments"), ARGUMENTS.items())
def test_a_former_argument_of_a_class_is_refused_with_the_present_one(capsys, hint, arguments):
    error = every_line(capsys, arguments)
    assert error.count(f"; {hint} now") in (1, 2)  # a callback may be one or a list of them
    assert "is not accepted" in error


def test_an_argument_of_another_class_has_no_hint(capsys):
    given = ["--model.objective=Clipped", "--model.objective.lowest=0"]
    error = every_line(capsys, given)
    assert "Option 'lowest' is not accepted" in error
    assert " now" not in error


@pytest.mark.parametrize("argument", ["--model.update.foo=1", "--model.optimizer.foo=1"])
def test_a_name_that_never_was_has_no_hint(capsys, argument):
    assert " now" not in refused(capsys, "fit", *base(), argument)


@pytest.mark.parametrize("given", ["", "last", "configs"])
def test_a_fork_of_no_checkpoint_is_refused_with_the_remedy(capsys, tmp_path, given):
    root = f"--trainer.default_root_dir={tmp_path}"
    error = refused(capsys, "fit", *base(), root, f"--fork_from={given}")
    assert error.startswith("error: fork_from=")
    assert "give the path of a checkpoint, a file or a folder of shards" in error
