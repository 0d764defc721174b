"""The self-check: right models pass, and each kind of fault that was seen makes it refuse the model
by name.
"""

from __future__ import annotations

import re

import pytest
import torch
from transformers import (
    BertConfig,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen3Config,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import rlif_lightning.model.attention as attention
import rlif_lightning.model.masks as masks
import rlif_lightning.model.policy as policy_module
import rlif_lightning.model.suitability as suitability
import rlif_lightning.rollout.self_check as self_check
import rlif_lightning.running.strategies as strategies
from rlif_lightning.learning.objective_base import ReferenceKL
from rlif_lightning.learning.objectives import Clipped
from rlif_lightning.model import plan_hook
from rlif_lightning.model.loading import LoRA, Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.model.shrunken import NotShrinkable, random_model, shrunken
from rlif_lightning.rollout.kv_memory import SharedPrefixMemory
from rlif_lightning.rollout.self_check import check_architecture, check_weights, examine

RIGHT = {
    "llama": LlamaConfig(),
    "mistral": MistralConfig(),
    "gemma3": Gemma3TextConfig(final_logit_softcapping=30.0),
    "qwen3": Qwen3Config(),
    "gpt2": GPT2Config(),
    "granite": GraniteConfig(logits_scaling=8.0),
    "opt": OPTConfig(),
    "mixtral": MixtralConfig(router_jitter_noise=0.01),
}


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """Each test compares anew."""
    monkeypatch.setattr(self_check, "_passed", set())


def lose_the_scale(monkeypatch):
    """The head alone, without what the model does to its output."""
    monkeypatch.setattr(
        PolicyModel,
        "head",
        lambda self, hidden, weight=None: self.causal_lm.get_output_embeddings()(hidden),
    )


def take_the_wrong_head(monkeypatch):
    """The embedding's weights, as if the head were tied to them."""

    def head(self, hidden, weight=None):
        return hidden @ self.causal_lm.get_input_embeddings().weight.T

    monkeypatch.setattr(PolicyModel, "head", head)


def lose_the_plan(monkeypatch):
    """Attention that asks no plan: every token of the line sees all others."""

    def attend(module, query, key, value, attention_mask, scaling=None, **kwargs):
        view = getattr(attention_mask, "plan_view", None)
        if view is not None:
            view.planned.asked[module.layer_idx] += 1
        return sdpa_attention_forward(
            module, query, key, value, None, scaling=scaling, is_causal=False
        )

    plan_hook.register()  # before it is replaced
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "rlif", attend)


def ignore_the_window(monkeypatch):
    """Layers with a window see everything."""
    seen = masks.seen_keys
    for module in (attention, masks):
        monkeypatch.setattr(
            module, "seen_keys", lambda queries, keys, window: seen(queries, keys, None)
        )


def leave_the_noise_on(monkeypatch):
    """Dropout as it is in training."""
    monkeypatch.setattr(policy_module, "switch_noise_off", lambda model: None)
    monkeypatch.setattr(
        policy_module, "set_quiet_mode", lambda model, training: model.train(training)
    )


def allow_state(monkeypatch):
    """Layers that carry state along the line."""
    monkeypatch.setattr(suitability, "state_of", lambda model: None)


def turn_angles_wrongly(monkeypatch):
    """Cached keys one position further than they are."""
    start = SharedPrefixMemory.start_step
    monkeypatch.setattr(SharedPrefixMemory, "start_step", lambda self: start(self) + 1)


SABOTAGE = {
    "scale": (
        lose_the_scale,
        CohereConfig(logit_scale=0.25),
        "statistics of a packed pass differ.*of decoding differ",
    ),
    "head": (
        take_the_wrong_head,
        LlamaConfig(),
        "statistics of a packed pass differ.*statistics of decoding differ",
    ),
    "plan": (lose_the_plan, LlamaConfig(), "statistics of a packed pass differ"),
    "window": (ignore_the_window, MistralConfig(), "statistics of a packed pass differ"),
    "noise": (
        leave_the_noise_on,
        GPT2Config(),
        "two passes over the same completions differ by .* nats: noise stays on",
    ),
    "state": (
        allow_state,
        Lfm2Config(layer_types=["conv", "full_attention"] * 16),
        "statistics of a packed pass differ",
    ),
    "angles": (turn_angles_wrongly, LlamaConfig(), "statistics of decoding differ"),
}


FAST = [("llama", "sdpa"), ("gemma3", "sdpa"), ("gpt2", "sdpa"), ("mixtral", "sdpa")]
FAST += [("llama", "eager")]  # test_architectures.py has the windows of eager attention


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "attention"),
    [
        pytest.param(name, how, marks=() if (name, how) in FAST else pytest.mark.full)
        for name in RIGHT
        for how in ("sdpa", "eager")
    ],
)
def test_right_models_pass(name, attention):
    verdict = examine(RIGHT[name], attention)
    assert verdict.faults == ()
    assert verdict.shares_prompts == (attention == "sdpa")


@pytest.mark.parametrize("fault", SABOTAGE)
def test_each_kind_of_fault_is_seen(fault, monkeypatch):
    sabotage, config, found = SABOTAGE[fault]
    if type(config) not in {type(RIGHT[name]) for name, how in FAST if how == "sdpa"}:
        assert examine(config, "sdpa").faults == ()  # as those that are right above
    sabotage(monkeypatch)
    faults = examine(config, "sdpa").faults
    assert faults
    assert re.search(found, "; ".join(faults)), faults


def saved(config, folder) -> Policy:
    """Settings of a model of which there is nothing but its configuration."""
    config.save_pretrained(folder)
    return Policy(str(folder))


def test_the_error_names_the_model_what_differs_and_what_works(tmp_path, monkeypatch):
    """Before weights are read: there are none."""
    policy = saved(LlamaConfig(), tmp_path)
    assert check_architecture(policy)
    self_check._passed.clear()
    turn_angles_wrongly(monkeypatch)
    message = (
        rf"model\.policy\.name='{tmp_path}': LlamaForCausalLM \(llama\) .* a small random copy:"
        r" statistics of decoding"
        r" differ from the model's own forward by [\d.]+ nats \(limit 0\.001\)\."
        r" Set model\.policy\.attention=eager, which agrees"
    )
    with pytest.raises(ValueError, match=message):
        strategies.build_policy(policy, None)


def test_a_model_that_loading_refuses_is_refused_in_its_words(tmp_path):
    policy = saved(BertConfig(), tmp_path)
    with pytest.raises(
        ValueError,
        match=rf"^model\.policy\.name='{tmp_path}': in BertLMHeadModel tokens see later ones",
    ):
        check_architecture(policy)


@pytest.mark.slow
def test_where_eager_does_not_help_another_model_is_recommended(tmp_path, monkeypatch):
    policy = saved(CohereConfig(logit_scale=0.25), tmp_path)
    lose_the_scale(monkeypatch)
    with pytest.raises(ValueError, match=r"CohereForCausalLM \(cohere\) .* Use another model"):
        check_architecture(policy)


def test_what_an_architecture_raises_is_part_of_the_error(tmp_path, monkeypatch):
    def head(self, hidden, weight=None):
        raise AttributeError("no attribute 'conv_states'")

    monkeypatch.setattr(PolicyModel, "head", head)
    with pytest.raises(
        ValueError, match="a packed pass raises AttributeError: no attribute 'conv_states'"
    ):
        check_architecture(saved(LlamaConfig(), tmp_path))


def test_the_copy_has_each_kind_of_layer_and_the_same_scalings():
    gemma = shrunken(
        Gemma3TextConfig(final_logit_softcapping=30.0)
    )  # five layers with a window, then one without
    assert gemma.layer_types == ["sliding_attention"] * 5 + ["full_attention"]
    assert (gemma.sliding_window, gemma.final_logit_softcapping) == (4, 30.0)
    llama4 = shrunken(
        Llama4TextConfig()
    )  # every fourth layer has no rotary angles, and attends without chunks
    assert (llama4.num_hidden_layers, llama4.no_rope_layers) == (4, [1, 1, 1, 0])
    assert shrunken(DeepseekV3Config()).num_hidden_layers == 4  # three dense ones, then experts
    granite = shrunken(
        GraniteConfig(logits_scaling=8.0, attention_multiplier=0.02, num_key_value_heads=8)
    )
    assert (granite.logits_scaling, granite.attention_multiplier, granite.num_key_value_heads) == (
        8.0,
        0.02,
        2,
    )
    assert shrunken(LlamaConfig(num_hidden_layers=1)).num_hidden_layers == 1
    gemma2 = shrunken(Gemma2Config())
    assert (gemma2.attn_logit_softcapping, gemma2.query_pre_attn_scalar) == (50.0, 256)
    assert sum(p.numel() for p in random_model(gemma2).parameters()) < 50_000


def test_the_real_configuration_stays_as_it_is():
    config = GraniteConfig()
    before = config.to_json_string()
    shrunken(config)
    assert config.to_json_string() == before


def test_code_that_comes_with_the_weights_has_no_copy():
    class OwnConfig(PreTrainedConfig):
        model_type = "own"

    with pytest.raises(NotShrinkable, match="OwnConfig is not one of Transformers' own"):
        examine(OwnConfig(), "sdpa")


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    [
        # Adapters are checked in float32: below.
        *(pytest.param(n, marks=pytest.mark.full) for n in ("float64", "float16", "float32")),
        "bfloat16",
    ],
)
def test_right_weights_pass_in_every_precision(tiny_models, dtype):
    for folder in tiny_models.values():
        settings = Policy(str(folder), dtype=dtype)
        check_weights(PolicyModel(settings), settings)


def test_adapters_are_part_of_the_model(tiny_models):
    pytest.importorskip("peft")
    settings = Policy(str(tiny_models["llama"]), lora=LoRA(rank=2, alpha=4))
    policy = PolicyModel(settings)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    check_weights(policy, settings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wrong_weights_are_refused(tiny_models, dtype, monkeypatch):
    settings = Policy(str(tiny_models["llama"]), dtype=dtype)
    take_the_wrong_head(monkeypatch)
    message = (
        rf"LlamaForCausalLM \(llama\) .* its weights in {dtype}: .* nats .*"
        r" model\.policy\.attention=eager"
    )
    with pytest.raises(ValueError, match=message):
        check_weights(PolicyModel(settings), settings)


def test_a_run_is_checked_once(monkeypatch):
    """Not again for the frozen reference, nor when validation or prediction follow."""
    from rlif_lightning import RLIFModule, SelfCertainty, WeightedReward

    calls = []
    for name in ("check_architecture", "check_weights"):
        check = getattr(strategies, name)
        monkeypatch.setattr(
            strategies, name, lambda *args, c=check, n=name: (calls.append(n), c(*args))[1]
        )
    examined = self_check.examine
    monkeypatch.setattr(
        self_check, "examine", lambda *args: (calls.append("examine"), examined(*args))[1]
    )
    for _ in range(2):
        module = RLIFModule(
            Policy("rlif-arithmetic"),
            {"self": WeightedReward(SelfCertainty())},
            objective=Clipped(reference_kl=ReferenceKL(0.1)),
        )
        for _ in range(2):
            module.configure_model()
        assert module.reference is not None
    assert calls == [
        "check_architecture",
        "examine",
        "check_weights",
        "check_architecture",
        "check_weights",
    ]


@pytest.mark.slow
def test_the_runs_random_numbers_and_precision_are_left_alone(tmp_path, tiny_models):
    settings = Policy(str(tiny_models["gpt2"]))
    policy = PolicyModel(settings)
    before, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does under bf16-true
    try:
        with torch.device("meta"):  # as Lightning does with the device it trains on
            check_architecture(saved(GPT2Config(), tmp_path))
            check_weights(policy, settings)
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_float32_matmul_precision() == precision
    assert policy.training


def test_a_divided_model_without_a_copy_is_warned_of(monkeypatch):
    def not_shrinkable(config, attention):
        raise NotShrinkable("a shape of its own")

    monkeypatch.setattr(self_check, "examine", not_shrinkable)
    monkeypatch.setattr(strategies, "split_policy", lambda *args: "the model")
    strategy = strategies.TensorParallelStrategy(process_group_backend="gloo")
    monkeypatch.setattr(type(strategy), "root_device", torch.device("cpu"))
    with pytest.warns(
        UserWarning, match=r"no small copy of this model can be built.*trainer\.devices=1"
    ):
        assert strategies.build_policy(Policy("rlif-arithmetic"), strategy) == "the model"
