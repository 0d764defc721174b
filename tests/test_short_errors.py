"""A mistake is a few lines: where it is, and what is wrong there."""

from __future__ import annotations

import pytest

from benchmarks.ranks import free_port
from harness.command_line import base
from rlif_lightning import cli

MISTAKES = {
    "--model.dynamic_samplng.max_draws=3": (1, "unrecognized arguments: --model.dynamic_samplng"),
    "--model.dynamic_sampling.max_draws=2.5": (1, "Expected a <class 'int'>. Got value: 2.5"),
    "--model.dynamic_sampling.heads=vote": (1, "Given value: vote"),
    "--model.replay.max_age=3": (1, "the following arguments are required: groups"),
    "--model.objective=Stare": (
        1,
        "give its import path; did you mean STARE?",
    ),
    "--trainer.callbacks+=Unheard": (1, "no class is named Unheard"),
    "--model.evaluation.checker.extractor.kind=boxed": (
        1,
        "model.evaluation.checker: extractor is a setting of AnswerChecker and CodeChecker and"
        " LiteralChecker: name the class before the setting",
    ),
    "--model.engine.server.url=x": (1, "server is a setting of VLLMServerEngine: name the class"),
    "--model.optimizer.learning_rate=1": (
        1,
        "model.optimizer: torch.optim.AdamW: Option 'learning_rate' is not accepted; it takes lr,",
    ),
    "--model.policy.lora.r=8": (1, "Option 'r' is not accepted; it takes rank, alpha, options"),
    "--model.optimizer.lr=fast": (
        1,
        "torch.optim.AdamW: lr: Expected a <class 'float'>, not fast",
    ),
    "--model.rewards.certanty.weight=0.2": (
        1,
        "model.rewards: the following arguments are required: head; each reward has one, as in"
        " {vote: {head: ClusterVote}}; one whose name is mistyped is another reward",
    ),
    "--model.rewards.vote.weight=heavy": (
        1,
        "weight: Expected a <class 'float'>. Got value: heavy",
    ),
    "--model.group_size=4": (1, 'Linked "model.group_size" must be given via "data.group_size".'),
    "--data.group_size=two": (1, "Expected a <class 'int'>. Got value: two"),
}
NOISE = ("NoneType", "NestedArg", "Namespace", "Subtypes", "usage", "typing", "WeightedReward")


@pytest.mark.slow
@pytest.mark.parametrize(("argument", "expected"), MISTAKES.items())
def test_a_mistake_is_a_few_lines(capsys, argument, expected):
    most, said = expected
    with pytest.raises(SystemExit) as info:
        cli.main(["fit", *base(), argument])
    assert info.value.code == 2
    _, _, error = capsys.readouterr().err.partition("tip: For details of accepted options run: ")
    hint, *lines = error.splitlines()
    assert hint.endswith("fit --help")
    assert len(lines) <= most
    assert lines[0].startswith("error: ")
    assert said in "\n".join(lines)
    assert not any(word in line for word in NOISE for line in lines)


def test_nothing_but_the_hint_stands_before_the_error(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", *base(), "--model.foo=1"])
    assert capsys.readouterr().err.startswith("tip: ")


def test_a_server_that_is_not_there_is_one_line(capsys, tmp_path):
    server = f"http://127.0.0.1:{free_port()}"
    arguments = f"{{server: '{server}', weights_folder: {tmp_path}/weights}}"
    given = f"--model.engine={{class_path: VLLMServerEngine, init_args: {arguments}}}"
    with pytest.raises(SystemExit) as info:
        cli.main(["fit", *base(), f"--trainer.default_root_dir={tmp_path}", given])
    assert info.value.code == 1
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert f"\nerror: the vLLM server {server} cannot be reached" in f"\n{printed}"
