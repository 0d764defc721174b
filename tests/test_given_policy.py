"""A model in memory as the policy: the run is that of the same model as a folder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.python_runs import ROWS, data_of
from rlif_lightning import ClusterVote, LoRA, Policy, RLIFModule, RLIFTrainer, Sampling
from rlif_lightning.data.tokenizer import resolve_model
from rlif_lightning.model.given_policy import as_policy, folder_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "rlif_lightning"


def embedded(change: float = 0.0) -> Any:
    """Return the embedded model; with a change it is another than its files."""
    model = AutoModelForCausalLM.from_pretrained(resolve_model("rlif-arithmetic"))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1 + change)
    return model


def trained(policy: Any, folder: Any) -> dict[str, torch.Tensor]:
    module = RLIFModule(
        policy, rewards={"vote": ClusterVote()}, sampling=Sampling(max_new_tokens=8)
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = RLIFTrainer(max_steps=2, default_root_dir=folder, accelerator="cpu", **quiet)
    trainer.fit(module, data_of(ROWS[:16]))
    assert module.policy is not None
    return {name: value.clone() for name, value in module.policy.state_dict().items()}


@pytest.mark.slow
def test_a_run_is_that_of_the_same_model_as_a_folder(tmp_path):
    model = embedded(0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("rlif-arithmetic"))
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    expected = trained(tmp_path / "saved", tmp_path / "a")
    found = trained((model, tokenizer), tmp_path / "b")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    other = trained("rlif-arithmetic", tmp_path / "c")
    assert any(not torch.equal(other[name], value) for name, value in expected.items())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_the_same_weights_have_the_same_folder_and_others_another(home):
    first = as_policy(embedded()).name
    assert as_policy(embedded()).name == first
    assert as_policy(embedded(1e-3)).name != first
    assert len(list(home.iterdir())) == 2  # nothing half written is left
    lora = LoRA(rank=2)
    assert Policy(str(folder_of(embedded())), lora=lora).name == first


def test_a_tokenizer_is_that_of_the_model_s_name_or_is_asked_for():
    model = embedded()
    tokenizer = AutoTokenizer.from_pretrained(as_policy(model).name)
    assert (
        tokenizer("1+2=")["input_ids"]
        == AutoTokenizer.from_pretrained(resolve_model("rlif-arithmetic"))("1+2=")["input_ids"]
    )
    nameless = type(model)(model.config)
    nameless.config.name_or_path = nameless.name_or_path = "nobody/nothing"
    with pytest.raises(ValueError, match=r"no tokenizer is found by .*pass policy=\(model, token"):
        as_policy(nameless)
    with pytest.raises(TypeError, match="dict is no tokenizer of transformers"):
        as_policy((model, {}))


def test_what_a_folder_cannot_hold_is_refused(home):
    peft = pytest.importorskip("peft")
    model = embedded()
    with torch.device("meta"):
        empty = type(model)(model.config)
    with pytest.raises(ValueError, match="has parameters on the meta device"):
        as_policy(empty)
    with pytest.raises(TypeError, match="policy=Linear is no causal language model"):
        as_policy(nn.Linear(2, 2))
    adapted = peft.get_peft_model(embedded(), peft.LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(ValueError, match=r"has adapters: pass model.merge_and_unload\(\)"):
        as_policy(adapted)
    assert not home.exists()
