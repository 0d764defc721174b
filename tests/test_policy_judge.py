"""A local model as the judge: its replies are the model's own, whatever is around them."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.launches import BASE, assert_same_runs, assert_two_are_one, launch, on
from harness.runs import ONE, assert_same, fit, parameters
from rlif_lightning import Policy, PolicyJudge, Sampling, ScoreParser
from rlif_lightning.judges.base import Request, RunModels
from rlif_lightning.model.policy import PolicyModel

TEXTS = ["1 + 2 =", "3 + 4 + 5 =", "7", "2 + 2 = 4", "9 + 1 ="]
SAMPLED = Sampling(temperature=1.0, max_new_tokens=6)
GREEDY = Sampling(temperature=0.0, max_new_tokens=6)


def bound(judge: PolicyJudge, folder, seed: int = 0) -> tuple[PolicyJudge, PolicyModel]:
    settings = Policy(str(folder))
    policy = PolicyModel(settings)

    def load(wanted: Policy) -> PolicyModel:
        return PolicyModel(wanted, frozen=True)

    judge.bind(RunModels(policy, settings, load, torch.device("cpu"), seed))
    return judge, policy


def texts(judge: PolicyJudge, *asked: str) -> list[str | None]:
    return [reply.text for reply in judge.ask([Request(text) for text in asked])]


def test_a_greedy_reply_is_the_models_own(tiny_models):
    folder = tiny_models["llama"]
    judge, _ = bound(PolicyJudge(sampling=GREEDY), folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, reply in zip(TEXTS, judge.ask([Request(each) for each in TEXTS]), strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        drawn = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0]
        own = drawn[ids.shape[1] :]
        assert reply.text == tokenizer.decode(own, skip_special_tokens=True).strip()
        assert (reply.prompt_tokens, reply.completion_tokens) == (ids.shape[1], len(own))


@pytest.mark.slow
def test_a_sampled_reply_follows_from_seed_and_question_alone(tiny_models):
    judge, _ = bound(PolicyJudge(sampling=SAMPLED), tiny_models["llama"])
    together = texts(judge, *TEXTS)
    assert texts(judge, *reversed(TEXTS)) == together[::-1]
    assert [texts(judge, text)[0] for text in TEXTS] == together
    assert len(set(together)) > 1
    other, _ = bound(PolicyJudge(sampling=SAMPLED), tiny_models["llama"], seed=1)
    assert texts(other, *TEXTS) != together


@pytest.mark.slow
def test_a_frozen_judge_stays_and_the_policy_itself_moves(tiny_models):
    folder = tiny_models["llama"]
    frozen, first = bound(PolicyJudge(sampling=GREEDY), folder)
    live, second = bound(PolicyJudge(frozen=False, sampling=GREEDY), folder)
    before = texts(frozen, *TEXTS)
    assert texts(live, *TEXTS) == before
    for policy in (first, second):
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(-1.5)
    assert texts(frozen, *TEXTS) == before
    assert texts(live, *TEXTS) != before


def test_a_judge_of_its_own_is_another_model(tiny_models):
    own = PolicyJudge(Policy(str(tiny_models["qwen3"])), sampling=GREEDY)
    judge, _ = bound(own, tiny_models["llama"])
    alone, _ = bound(PolicyJudge(sampling=GREEDY), tiny_models["qwen3"])
    assert texts(judge, *TEXTS) == texts(alone, *TEXTS)


def test_a_special_token_that_is_spelt_out_is_text(tiny_models):
    judge, policy = bound(PolicyJudge(sampling=GREEDY), tiny_models["llama"])
    end = policy.tokenizer.eos_token
    [ids] = judge._token_ids([f"1 {end} 2"])
    assert policy.tokenizer.eos_token_id not in ids[1:].tolist()
    assert policy.tokenizer.eos_token_id in policy.tokenizer(f"1 {end} 2")["input_ids"]


@pytest.mark.slow
def test_a_chat_model_is_asked_in_its_own_chat(tiny_models, tmp_path):
    folder = tiny_models["llama"]
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}1 + {{ m.content }} ={% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    chat, _ = bound(PolicyJudge(sampling=GREEDY), tmp_path)
    _, policy = bound(PolicyJudge(sampling=GREEDY), folder)
    [ids] = chat._token_ids(["5"])
    assert ids.tolist() == policy.tokenizer("1 + 5 =", add_special_tokens=False)["input_ids"]


def test_a_thought_that_the_chat_template_opens_is_no_reply(tiny_models):
    """As R1's and Qwen3's templates do: a verdict inside a thought that is cut is none."""
    settings = Policy(str(tiny_models["llama"]))
    policy, judge = PolicyModel(settings), PolicyJudge(frozen=False, sampling=GREEDY)
    models = RunModels(policy, settings, PolicyModel, torch.device("cpu"), 0)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    for opened, is_reply in (("", True), ("<think>\n", False)):
        policy.tokenizer.chat_template = template + opened
        judge.bind(models)
        assert [bool(reply) for reply in texts(judge, *TEXTS)] == [is_reply] * len(TEXTS)


def test_a_question_that_the_model_cannot_read_is_a_failed_call(tiny_models):
    judge, _ = bound(PolicyJudge(sampling=GREEDY), tiny_models["gpt2"])  # 256 positions
    replies = judge.ask([Request("1 + " * 200), Request("1 + 2 =")])
    assert replies[0].text is None
    assert "the judge cannot read the question" in replies[0].failure
    assert replies[1].text is not None
    assert judge.ask([]) == []
    assert judge.ask([Request("1 + " * 200)])[0].text is None


def test_settings_that_do_nothing_are_refused():
    with pytest.raises(ValueError, match="nothing trains this model"):
        PolicyJudge(Policy("rlif-arithmetic"), frozen=False)


class Digit(ScoreParser):
    """Reads the first digit anywhere: a random model writes no verdict line."""

    def __init__(self):
        super().__init__(0, 9)

    def __call__(self, text: str) -> float | None:
        found = re.search("[0-9]", text)
        return int(found[0]) / 9 if found else None


HEAD = {
    "class_path": "RubricJudgeHead",
    "init_args": {
        "template": "{prompt} {completion} {reference}",
        "parser": {"class_path": "test_policy_judge.Digit"},
        "truncated": "ask",
    },
}


def head(**judge) -> dict:
    named = {"class_path": "PolicyJudge", "init_args": judge}
    return {**HEAD, "init_args": {**HEAD["init_args"], "judge": named}}


def rewards(head: dict, weight: float = 1.0) -> str:
    both = {
        "judge": {"head": head, "weight": weight},
        "vote": {"head": "ClusterVote", "weight": 1.0},
    }
    return "--model.rewards=" + json.dumps(both)


@pytest.mark.slow
def test_the_policy_never_sees_what_the_judge_sees(tmp_path):
    """A judge of weight 0 that sees every reference leaves a run as it is without, bit for bit."""
    sampling = {"temperature": 1.0, "max_new_tokens": 8}
    judging = rewards(head(frozen=False, sampling=sampling), weight=0.0)
    short = [*ONE, "--trainer.limit_val_batches=0"]
    judged = fit(tmp_path / "a", *short, judging)
    alone = fit(
        tmp_path / "b", *short, '--model.rewards={"vote": {"head": "ClusterVote", "weight": 1.0}}'
    )
    assert_same(parameters(judged), parameters(alone))


JUDGED = [*BASE, rewards(head(sampling={"temperature": 1.0, "max_new_tokens": 6}))]


@pytest.mark.full  # test_judges_on_two.py, and test_contracts.py
def test_two_processes_are_one(tmp_path):
    assert_two_are_one(tmp_path, JUDGED)


@pytest.mark.full  # test_distributed.py and test_tensor_parallel.py have each strategy
def test_two_processes_are_one_under_every_strategy(tmp_path):
    live = [*BASE, rewards(head(frozen=False, sampling={"temperature": 0, "max_new_tokens": 6}))]
    launch(tmp_path, {"one": JUDGED, "live one": live})
    two = {name: [*JUDGED, *on(name, 2)] for name in ("fsdp2", "tp")}
    two |= {f"live {name}": [*live, *on(name, 2)] for name in ("fsdp2",)}
    launch(tmp_path, two, forks=2)
    for name in two:
        whole = "live one" if name.startswith("live") else "one"
        assert_same_runs((tmp_path, whole), (tmp_path, name))
