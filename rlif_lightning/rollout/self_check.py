"""Check that this library computes a model's own log-probs, before anything is trained.

The policy is built from parts of a Hugging Face model: its layers with another attention, and its
head. So each start compares it with the model itself. Before weights are read, a small random copy
of the configuration is compared in float32 on the CPU, on completions longer than its windows
(``check_architecture``). After they are read, a few short completions are compared in the weights'
own precision (``check_weights``). A model that does not agree is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from rlif_lightning.model.loading import Policy, own_attention, prepare_model, resolve_model
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.model.shrunken import NotShrinkable, random_model, shrunken
from rlif_lightning.model.small_sizes import VOCABULARY
from rlif_lightning.rollout.comparison import (
    GROUP,
    Limit,
    Rows,
    differences,
    own_stats,
    random_rows,
)
from rlif_lightning.rollout.decoder_base import Decoder
from rlif_lightning.rollout.decoders import choose_decoder

SMALL_COPY = Limit(1e-3)
# Limits for real weights, by precision (docs/models.md has measurements). Half precisions round
# each layer's output. Norms and rotary angles of Transformers are float32 in float64 models, too.
# The limit of float32 allows for TF32 on a GPU.
BY_DTYPE = {
    torch.float64: Limit(1e-3, twice_alike=False),
    torch.float32: Limit(1e-2, twice_alike=False),
    torch.float16: Limit(0.1, median=True, twice_alike=False),
    torch.bfloat16: Limit(0.3, median=True, twice_alike=False),
}
# Tokens of the small copy's prompts and completions: beyond WINDOW, within REACH.
PROMPT_LENGTHS, LENGTHS = (11, 6), (10, 5, 12, 3)
# Beyond REACH from the first completion token on.
LONG_PROMPTS, AFTER_THEM = (30, 26), (4, 1, 3, 2)
# With the real weights.
SHORT_PROMPTS, SHORT = (5, 3), (3, 2, 1, 3)
_passed: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Verdict:
    """The result of comparing a small copy.

    Attributes:
        model: class and type of the model.
        shares_prompts: whether prompts are computed and stored once per group.
        faults: what differs or cannot be computed; empty if the copy agrees.
        refused: whether the only fault is the whole message of a check that refuses such models
            when they are loaded.
    """

    model: str
    shares_prompts: bool
    faults: tuple[str, ...]
    refused: bool = False


def check_architecture(policy: Policy) -> bool:
    """Refuse a configuration whose log-probs would not be the model's own.

    Each process compares a configuration once.

    Returns:
        False if nothing was compared, since there is no small copy (the code comes with the
        weights, or a shape cannot be shrunk).

    Raises:
        ValueError: names the model, what differs, and what works instead.
    """
    source = {"revision": policy.revision or "main", "trust_remote_code": policy.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(resolve_model(policy.name), **source)
    except Exception:
        return True  # loading the model raises a better error
    if policy.trust_remote_code and "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or {}
    ):
        return False
    key = (config.to_json_string(use_diff=False), policy.attention)
    if key in _passed:
        return True
    try:
        verdict = examine(config, policy.attention)
        if verdict.refused:
            raise ValueError(verdict.faults[0])
        if verdict.faults:
            remedy = _remedy(config, policy.attention)
            raise ValueError(
                _message(policy.name, verdict.model, verdict.faults, "a small random copy", remedy)
            )
    except NotShrinkable:
        return False
    _passed.add(key)
    return True


def examine(config: PreTrainedConfig, attention: str) -> Verdict:
    """Compare a small copy of a configuration with the model's own forward.

    Raises:
        NotShrinkable: there is no small copy, or the model itself does not run at that size.
    """
    if not type(config).__module__.startswith("transformers."):
        raise NotShrinkable(f"{type(config).__name__} is not one of Transformers' own")
    with _plain_arithmetic(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # loading the real model raises the warnings that matter
        small = shrunken(config)
        own = random_model(small)
        choices = torch.arange(VOCABULARY // 8, VOCABULARY)  # without special tokens
        cpu = torch.device("cpu")
        rows = [random_rows(PROMPT_LENGTHS, LENGTHS, choices, cpu)]
        if "longrope" in str(getattr(small.get_text_config(decoder=True), "rope_parameters", "")):
            rows.append(random_rows(LONG_PROMPTS, AFTER_THEM, choices, cpu))
        try:
            own_stats(own, rows[0])
        except Exception as error:
            raise NotShrinkable(
                f"its own forward raises {type(error).__name__}: {error}"
            ) from error
        return _verdict(small, own, rows, attention)


def _verdict(small: PreTrainedConfig, own: Any, rows: list[Rows], attention: str) -> Verdict:
    # The embedded model is named for its tokenizer, which is small.
    name, settings = _name(own), Policy("rlif-arithmetic", attention=attention)
    try:
        policy = PolicyModel(
            settings, load=lambda each: prepare_model(_copied(small, own, each), each)
        )
        faults = []
        for part in rows:
            faults += differences(policy, _decoder(policy, part), own, part, SMALL_COPY)
    except Exception as error:
        message = str(error).replace(
            repr(settings.name), repr(small.name_or_path or small.model_type)
        )
        if message.startswith("model.policy."):  # a message of ours, with the setting and a remedy
            return Verdict(name, False, (message,), refused=True)
        return Verdict(name, False, (f"loading raises {type(error).__name__}: {message}",))
    return Verdict(name, policy.shares_prompts, tuple(faults))


def _copied(small: PreTrainedConfig, own: Any, settings: Policy) -> Any:
    """Return another model with the same weights, built like a policy's model."""
    with torch.random.fork_rng(devices=[]):
        attention = own_attention(settings)
        model = AutoModelForCausalLM.from_config(
            small, dtype=torch.float32, attn_implementation=attention
        )
    model.load_state_dict(own.state_dict())
    return model


def _decoder(policy: PolicyModel, rows: Rows) -> Decoder:
    """Return the decoder that the native engine would use."""
    return choose_decoder(policy, rows.prompts, len(rows.ids), rows.ids.shape[1], GROUP)


@contextmanager
def _plain_arithmetic() -> Iterator[None]:
    """Compute on the CPU in full float32, whatever device and precision the run has."""
    precision, dtype = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    torch.set_float32_matmul_precision("highest")
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)


def _name(model: Any) -> str:
    return f"{type(model).__name__} ({model.config.model_type})"


def _remedy(config: PreTrainedConfig, attention: str) -> str:
    """Return the setting that agrees, if there is one."""
    if attention != "eager" and not examine(config, "eager").faults:
        return "set model.policy.attention=eager, which agrees"
    return (
        "use another model: no setting makes this one agree (docs/models.md lists those that work)"
    )


def _message(name: str, model: str, faults: tuple[str, ...], where: str, remedy: str) -> str:
    return (
        f"model.policy.name={name!r}: {model} would be trained on log-probs that are not its own."
        f" Compared on {where}: {'; '.join(faults)}. {remedy[0].upper()}{remedy[1:]}"
    )


def check_weights(policy: PolicyModel, settings: Policy) -> None:
    """Refuse a loaded model whose log-probs are not its own, on a few short completions.

    Args:
        policy: on the device where it will be trained; not sharded.
        settings: that it was loaded with.

    Raises:
        ValueError: names the model, what differs, and what to try.
    """
    model = policy.causal_lm
    embedding = model.get_input_embeddings()
    with torch.device("cpu"):  # while models are built, Lightning sets another default device
        special = torch.tensor([*policy.tokenizer.all_special_ids, *policy.eos_ids])
        choices = torch.arange(min(len(embedding.weight), len(policy.tokenizer)))
        choices = choices[~torch.isin(choices, special)]
        rows = random_rows(SHORT_PROMPTS, SHORT, choices, embedding.weight.device)
        faults = differences(
            policy,
            _decoder(policy, rows),
            partial(_own_forward, policy),
            rows,
            BY_DTYPE.get(model.dtype, BY_DTYPE[torch.bfloat16]),
        )
    if faults:
        remedy = "try another model"
        if settings.attention != "eager":
            remedy = "try model.policy.attention=eager, or another model"
        where = f"its weights in {str(model.dtype).removeprefix('torch.')}"
        raise ValueError(_message(settings.name, _name(model), tuple(faults), where, remedy))


def _own_forward(policy: PolicyModel, **inputs: Any) -> Any:
    training = policy.training
    policy.eval()
    output = policy.model(**inputs)
    policy.train(training)
    return output
