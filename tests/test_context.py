"""Limits of a model's context: refused before anything is sampled, and right up to them."""

from __future__ import annotations

import pytest
import torch

from harness.architectures import check, load, save_tiny, tiny_config
from harness.decoding import GROUP
from rlif_lightning.model.context import ContextLimits
from rlif_lightning.model.packing import pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Completions, Prompts, Rollout
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [9.0, 5.0, 3.0, 2.0],
}
LONGROPE["original_max_position_embeddings"] = 32


def rollout(
    policy: PolicyModel, lengths: list[int], max_new_tokens: int, first: int = 20
) -> Rollout:
    engine = NativeEngine()
    engine.setup(policy, 3)
    ids = [torch.arange(first, first + length) for length in lengths]
    prompts = Prompts(ids, [""] * len(ids), {}, torch.arange(len(ids)))
    return engine.generate(prompts, GROUP, Sampling(max_new_tokens=max_new_tokens), 0)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gptj", "mpt", "xglm"])
def test_a_context_beyond_the_table_of_positions_is_refused(tmp_path, kind):
    setting = "max_seq_len" if kind == "mpt" else "max_position_embeddings"
    policy = load(save_tiny(tiny_config(kind, **{setting: 12}), tmp_path))
    with pytest.raises(
        ValueError,
        match=r"has 12 positions .* 5 tokens .*max_new_tokens=9 .* 14 tokens; lower data",
    ):
        rollout(policy, [5, 3], 9)
    assert rollout(policy, [5, 3], 8).mask.any()  # the last token is no input


def test_a_packed_line_beyond_the_table_of_positions_is_refused(tmp_path):
    policy = load(save_tiny(tiny_config("gpt2", max_position_embeddings=12), tmp_path))
    ids, mask = torch.zeros((1, 9), dtype=torch.int64), torch.ones((1, 9), dtype=torch.bool)
    (packed,) = pack(Completions([torch.arange(5)], ids, mask, 1), 99)
    with pytest.raises(ValueError, match="has 12 positions"):
        policy(packed, Sampling())


def test_tokens_without_an_embedding_are_refused(tmp_path):
    policy = load(save_tiny(tiny_config("llama"), tmp_path))
    rows = policy.vocab_size
    with pytest.raises(
        ValueError, match=f"token id {rows}, .* for {rows} tokens only: its tokenizer"
    ):
        rollout(policy, [3], 4, first=rows - 2)
    assert rollout(policy, [3], 4, first=rows - 3).mask.any()


def test_a_layer_that_selects_tokens_is_refused_beyond_their_number(tmp_path):
    policy = load(save_tiny(tiny_config("doge", keep_window_size=12), tmp_path))
    with pytest.raises(ValueError, match="selects 12 tokens to attend to"):
        rollout(policy, [5], 8)
    assert rollout(policy, [5], 7).mask.any()


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_angles_that_change_with_the_length_are_refused_where_they_change(tmp_path, kind):
    rope = (
        LONGROPE if kind == "phi3" else {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    )
    settings = (
        {"original_max_position_embeddings": 32}
        if kind == "phi3"
        else {"max_position_embeddings": 32}
    )
    policy = load(
        save_tiny(
            tiny_config(kind, rope_parameters=rope, sliding_window=None, **settings), tmp_path
        )
    )
    with pytest.raises(
        ValueError, match=r"original_max_position_embeddings=32 \(rope_type '(longrope|dynamic)'\)"
    ):
        rollout(policy, [20, 3], 13)
    assert rollout(policy, [20, 3], 12).mask.any()


@pytest.mark.parametrize("original", [32, 2])
def test_long_rope_is_right_on_either_side_of_its_original_length(tmp_path, original):
    """Contexts of up to 32 tokens, all with the short factors, or from their first token on with
    the long ones.
    """
    rope = {**LONGROPE, "original_max_position_embeddings": original}
    config = tiny_config(
        "phi3", rope_parameters=rope, original_max_position_embeddings=original, sliding_window=None
    )
    folder = save_tiny(config, tmp_path)
    check(folder, load(folder, dtype="float64"))


def test_what_a_model_of_another_kind_allows_is_no_limit(tmp_path):
    policy = load(save_tiny(tiny_config("llama", max_position_embeddings=8), tmp_path))
    assert policy.limits == ContextLimits(policy.vocab_size, None, None, None)
    assert rollout(policy, [5], 9).mask.any()
