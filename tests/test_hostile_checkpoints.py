"""A checkpoint of somebody else: what it may decide alone, and what a person has to say."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.judge_server import judge_server
from harness.python_runs import module
from rlif_lightning import EndpointJudge, GoldAnswer, JudgeHead, Random, RLIFModule
from rlif_lightning.evaluation.ask import load
from rlif_lightning.running.rebuilt import arguments_in
from rlif_lightning.running.run_settings import KEY, model_settings

HEAD = "model.rewards.r.head"
RULE = f"{HEAD}.init_args.judge"
LIBRARY = "rlif_lightning"
BASE = {
    "model.policy.name": "rlif-arithmetic",
    "model.rewards": ["r"],
    f"{HEAD}.class_path": f"{LIBRARY}.rewards.voting.ClusterVote",
}


def judged(url: str) -> dict[str, Any]:
    return BASE | {
        f"{HEAD}.class_path": f"{LIBRARY}.rewards.judged.JudgeHead",
        f"{RULE}.class_path": f"{LIBRARY}.judges.endpoint.EndpointJudge",
        f"{RULE}.init_args.url": url,
        f"{RULE}.init_args.model": "m",
        f"{RULE}.init_args.key_variable": "HOME",
    }


CODE = {
    "model.engine.class_path": f"{LIBRARY}.rollout.vllm_engine.VLLMEngine",
    "model.engine.init_args.options.worker_cls": "antigravity.Worker",
}
SERVER = {
    "model.engine.class_path": f"{LIBRARY}.rollout.vllm_engine.VLLMServerEngine",
    "model.engine.init_args.server": "http://127.0.0.1:9",
    "model.engine.init_args.weights_folder": "/tmp/elsewhere",
}
WEAK = {
    f"{HEAD}.class_path": f"{LIBRARY}.rewards.code.CodeTests",
    f"{HEAD}.init_args.sandbox.isolation": "rlimits",
}


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        (
            "rewards",
            judged("http://127.0.0.1:9/v1"),
            "url='http://127.0.0.1:9/v1' of EndpointJudge",
        ),
        ("engine", SERVER, "server='http://127.0.0.1:9' of VLLMServerEngine"),
        ("engine", CODE, "options={'worker_cls': 'antigravity.Worker'} of VLLMEngine"),
        ("rewards", WEAK, "isolation='rlimits' of Sandbox"),
    ],
)
def test_what_reaches_out_is_left_to_a_person(name, settings, said):
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        arguments_in(BASE | settings, RLIFModule, set())
    assert f"the checkpoint cannot give the argument {name!r}" in str(raised.value)
    assert str(raised.value).endswith(f"pass {name}=...")
    given = {name} if name == "engine" else {"rewards"}
    arguments_in(settings | {"model.policy.name": "rlif-arithmetic"}, RLIFModule, given)


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        (HEAD, "os.system"),
        (HEAD, "antigravity.Head"),
        (HEAD, f"{LIBRARY}.judges.chat_client.ChatClient"),  # ours, and no head
        (HEAD, "torch.optim.SGD"),
        ("model.engine", f"{LIBRARY}.rewards.voting.ClusterVote"),
        ("model.optimizer", f"{LIBRARY}.judges.chat_client.ChatClient"),
        ("model.optimizer", "torch.optim.swa_utils.AveragedModel"),
    ],
)
def test_a_class_of_another_kind_is_not_made(setting, path):
    name = setting.split(".")[1]
    with pytest.raises(ValueError, match=f"cannot give the argument '{name}'"):
        arguments_in(BASE | {f"{setting}.class_path": path}, RLIFModule, {"policy"})
    assert "antigravity" not in sys.modules


def crafted(path: Path, settings: dict[str, Any], made: RLIFModule) -> Path:
    made.configure_model()
    content = {
        "state_dict": made.state_dict(),
        KEY: settings,
        "pytorch-lightning_version": "2.6.0",
        "epoch": 0,
        "global_step": 0,
        "loops": {},
    }
    torch.save(content, path)
    return path


def test_a_crafted_file_sends_nothing_and_its_policy_can_still_be_asked(tmp_path):
    with judge_server() as server:
        url = server.url
        made = module(rewards={"r": JudgeHead(EndpointJudge(url, "m")), "coin": Random()})
        settings = model_settings(made)
        path = crafted(tmp_path / "run.ckpt", settings, made)
        with pytest.raises(ValueError, match=r"of EndpointJudge is where .*; pass rewards=\.\.\."):
            RLIFModule.load_from_checkpoint(path)
        mine = {"r": JudgeHead(EndpointJudge(url, "m")), "coin": Random()}
        assert RLIFModule.load_from_checkpoint(path, rewards=mine).rewards.names == ["r", "coin"]
        asked = load(str(path), RLIFModule)  # rlif generate, rlif chat
        assert asked.generate("3+4=") == made.generate("3+4=")
        assert server.asked == []


def test_rewards_keep_their_order():
    """What a head has learned (``spread_floor``) is kept by its number among the rewards."""
    heads = {"coin": Random(), "gold": GoldAnswer()}
    made = module(rewards=heads)
    found = arguments_in(model_settings(made), RLIFModule, set())
    assert list(found["rewards"]) == list(heads)
    assert model_settings(module(**found)) == model_settings(made)
