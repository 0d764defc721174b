"""The native engine: its statistics against a scoring pass, independence of the batch, greedy
decoding, endings.
"""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.decoding import GROUP, SAMPLINGS, completions, generate, load, prompts_of, rescored
from harness.models import ARCHITECTURES, EACH_ARCHITECTURE
from rlif_lightning.model.loading import Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import TokenStats
from rlif_lightning.rewards import Random
from rlif_lightning.rollout.external_samples import Drawn, Draws, as_rollout
from rlif_lightning.rollout.importance_weights import Correction
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.rollout.stop_strings import StopStrings
from rlif_lightning.sampling import Sampling


# The marks: "hot" has a temperature and a smallest length as well.
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "hot" else pytest.mark.full) for n in SAMPLINGS]
)
def test_statistics_of_sampling_are_those_of_scoring(tiny_models, architecture, name):
    policy, sampling = load(tiny_models[architecture]), SAMPLINGS[name]
    rollout = generate(policy, [0, 1, 2, 3], sampling)
    assert len(set(rollout.lengths.tolist())) > 2  # rows left at different times
    assert rollout.lengths.min() > sampling.min_new_tokens
    scored = rescored(policy, rollout, sampling)
    for field in fields(TokenStats):
        sampled = getattr(rollout.stats, field.name)
        assert sampled.dtype == torch.float32
        assert not sampled[~rollout.mask].any()
        torch.testing.assert_close(sampled, getattr(scored, field.name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", EACH_ARCHITECTURE)
def test_a_completion_does_not_depend_on_its_batch(tiny_models, architecture):
    policy, sampling = load(tiny_models[architecture]), SAMPLINGS["hot"]
    together = completions(generate(policy, [0, 1, 2, 3], sampling))
    assert completions(generate(policy, [3, 1], sampling)) == together[12:] + together[4:8]
    assert completions(generate(policy, [0, 1, 2, 3], sampling, max_rows=GROUP)) == together
    assert completions(generate(policy, [0, 1, 2, 3], sampling, max_rows=1)) == together
    assert completions(generate(policy, [0, 1, 2, 3], sampling, step=1)) != together


@pytest.mark.parametrize("architecture", EACH_ARCHITECTURE)
def test_a_longer_limit_only_appends(tiny_models, architecture):
    policy = load(tiny_models[architecture])
    short = generate(policy, [0, 1, 2], Sampling(max_new_tokens=6))
    long = generate(policy, [0, 1, 2], Sampling(max_new_tokens=20))
    assert not short.ended.all()
    pairs = zip(completions(short), completions(long), short.ended.tolist(), strict=True)
    for few, many, ended in pairs:
        assert many[: len(few)] == few
        assert (len(many) == len(few)) == ended or not ended


@pytest.mark.parametrize("architecture", EACH_ARCHITECTURE)
def test_greedy_is_the_library_s_greedy(tiny_models, architecture):
    policy = load(tiny_models[architecture], eager_to_end=False)
    rollout = generate(policy, [0, 1, 2, 3], Sampling(temperature=0, max_new_tokens=16))
    found = completions(rollout)
    for p, ids in enumerate(rollout.prompts.token_ids):
        batch = ids.unsqueeze(0)
        output = policy.model.eval().generate(
            input_ids=batch,
            attention_mask=torch.ones_like(batch),
            do_sample=False,
            max_new_tokens=16,
            pad_token_id=0,
        )
        assert found[p * GROUP : (p + 1) * GROUP] == [output[0, len(ids) :].tolist()] * GROUP


def test_ended_is_true_where_the_last_token_ends(tiny_models):
    policy = load(tiny_models["llama"])
    rollout = generate(policy, [0, 1, 2, 3], Sampling(max_new_tokens=8))
    assert 0 < int(rollout.ended.sum()) < len(rollout.ended)
    for ids, ended in zip(completions(rollout), rollout.ended.tolist(), strict=True):
        assert (ids[-1] in policy.eos_ids) == ended
        assert ended or len(ids) == 8
        assert not set(ids[:-1]) & set(policy.eos_ids)


# The mark: two strings are searched as one is.
@pytest.mark.parametrize(
    "stop", [["=", "+"], *(pytest.param([s], marks=pytest.mark.full) for s in "7#")]
)
def test_a_stop_string_ends_a_completion_and_is_cut_from_its_text(tiny_models, stop):
    policy = load(tiny_models["qwen2"], eager_to_end=False)
    rollout = generate(
        policy, [0, 1, 2, 3], Sampling(temperature=3.0, max_new_tokens=48, stop=stop)
    )
    decode = policy.tokenizer.decode
    stopped = 0
    for ids, text, ended in zip(
        completions(rollout), rollout.texts, rollout.ended.tolist(), strict=True
    ):
        whole = decode(ids, skip_special_tokens=True)
        assert not any(string in decode(ids[:-1], skip_special_tokens=True) for string in stop)
        cuts = [whole.find(string) for string in stop if string in whole]
        assert text == (whole[: min(cuts)] if cuts else whole)
        assert ended == (bool(cuts) or ids[-1] in policy.eos_ids)
        stopped += bool(cuts)
    assert stopped


def test_a_special_token_in_a_stop_string_counts(tiny_models):
    """It ends the completion though its text has no special tokens; what stood before it stays."""
    policy = load(tiny_models["qwen2"], eager_to_end=False)
    special, plain = (
        policy.tokenizer.convert_tokens_to_ids("<pad>"),
        Sampling(temperature=3.0, max_new_tokens=48),
    )
    assert special in policy.tokenizer.all_special_ids
    assert special not in policy.eos_ids
    whole = generate(policy, [0, 1, 2, 3], plain)
    found = generate(policy, [0, 1, 2, 3], replace(plain, stop=["7<pad>", "<pad>"]))
    decode, cut = policy.tokenizer.decode, 0
    for ids, before, text, ended in zip(
        completions(found), completions(whole), found.texts, found.ended.tolist(), strict=True
    ):
        if special not in before:
            assert ids == before
            continue
        assert ids == before[: before.index(special) + 1]
        assert ended
        spoken = decode(ids[:-1], skip_special_tokens=True)
        assert text == (spoken[:-1] if decode(ids).endswith("7<pad>") else spoken)
        cut += 1
    assert cut > 2
    # Another sampler's completions have the same texts.
    ids = [*policy.tokenizer.convert_tokens_to_ids(["3", "7"]), special]
    drawn = [Drawn(each, [0.0] * len(each), True) for each in (ids, *completions(found)[1:])]
    sampling = replace(plain, stop=["7<pad>", "<pad>"])
    other = as_rollout(policy, Draws(drawn, found.prompts), sampling, 1000, None)
    assert other.texts == ["3", *found.texts[1:]]


def test_a_stop_string_may_take_a_token_for_each_of_its_bytes():
    """Eight characters of three bytes each, in a vocabulary of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(
        models.BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[])
    )
    bare.pre_tokenizer, bare.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare)
    stop = "答案到此结束了。"
    ids = torch.tensor([tokenizer("等于七。" + stop).input_ids])
    assert ids.shape == (1, 12 * 3)
    ends = torch.tensor([ids.shape[1] - 1, ids.shape[1]])
    assert StopStrings(tokenizer, [stop]).found(ids, torch.tensor([0, 0]), ends).tolist() == [
        False,
        True,
    ]


def test_a_text_is_cut_before_a_stop_string_with_a_special_token(tiny_models):
    tokenizer = load(tiny_models["llama"]).tokenizer
    pad, seven, three = tokenizer.convert_tokens_to_ids(["<pad>", "7", "3"])
    ids = torch.tensor([three, pad, three, seven, pad])
    assert StopStrings(tokenizer, ["7<pad>"]).text(ids) == "33"
    assert StopStrings(tokenizer, ["37<pad>"]).text(ids) == "3"
    assert StopStrings(tokenizer, ["33"]).text(ids) == "337"  # the two are not neighbours
    assert StopStrings(tokenizer, []).text(ids) == "337"


STOPPING = {"temperature": 3.0, "max_new_tokens": 24, "stop": ["=", "7"]}


@pytest.mark.parametrize(
    ("architecture", "attention"),
    [
        pytest.param("qwen2", "sdpa", marks=pytest.mark.full),
        ("gpt2", "sdpa"),
        pytest.param("llama", "eager", marks=pytest.mark.full),
    ],
)
def test_train_stop_appends_an_end_of_sequence_and_changes_nothing_else(
    tiny_models, architecture, attention
):
    policy = load(tiny_models[architecture], eager_to_end=False, attention=attention)
    plain, sampling = (
        generate(policy, [0, 1, 2, 3], Sampling(**STOPPING)),
        Sampling(**STOPPING, train_stop=True),
    )
    closed = generate(policy, [0, 1, 2, 3], sampling)
    assert closed.texts == plain.texts
    assert torch.equal(closed.ended, plain.ended)
    appended = 0
    for row, (before, after) in enumerate(
        zip(completions(plain), completions(closed), strict=True)
    ):
        by_string = bool(plain.ended[row]) and before[-1] not in policy.eos_ids
        assert after == before + [policy.stop_id] * (by_string and len(before) < 24)
        appended += len(after) > len(before)
        torch.testing.assert_close(
            closed.stats.logprobs[row, : len(before)], plain.stats.logprobs[row, : len(before)]
        )
    assert 3 < appended < len(plain.texts)
    scored = rescored(policy, closed, sampling)
    for field in fields(TokenStats):
        sampled = getattr(closed.stats, field.name)
        torch.testing.assert_close(sampled, getattr(scored, field.name), rtol=1e-4, atol=1e-4)
    few = generate(policy, [0, 1, 2, 3], sampling, max_rows=GROUP)
    assert completions(few) == completions(closed)


def test_train_stop_is_the_same_for_completions_that_another_sampler_drew(tiny_models):
    policy = load(tiny_models["qwen2"], eager_to_end=False)
    plain, sampling = (
        generate(policy, [0, 1, 2, 3], Sampling(**STOPPING)),
        Sampling(**STOPPING, train_stop=True),
    )
    closed = generate(policy, [0, 1, 2, 3], sampling)
    drawn = [
        Drawn(ids, (plain.stats.logprobs[row, : len(ids)] - 0.1).tolist(), bool(plain.ended[row]))
        for row, ids in enumerate(completions(plain))
    ]
    found = as_rollout(policy, Draws(drawn, plain.prompts), sampling, 1000, Correction(2.0))
    assert completions(found) == completions(closed)
    assert found.texts == closed.texts
    torch.testing.assert_close(found.stats.logprobs, closed.stats.logprobs, rtol=1e-4, atol=1e-4)
    gap = found.stats.logprobs - found.engine_logprobs
    for row, ids in enumerate(completions(found)):
        was_drawn = len(drawn[row].ids)
        torch.testing.assert_close(
            gap[row, :was_drawn], torch.full((was_drawn,), 0.1), rtol=0, atol=1e-4
        )
        assert not gap[row, was_drawn : len(ids)].any()  # nobody drew it: no gap, and a weight of 1
        assert (found.token_weights[row, was_drawn : len(ids)] == 1).all()


# The mark: the last one has both.
@pytest.mark.parametrize(
    "truncated",
    [
        *(pytest.param(cut, marks=pytest.mark.full) for cut in ({"top_k": 3}, {"top_p": 0.7})),
        {"top_k": 5, "top_p": 0.9},
    ],
)
def test_statistics_are_of_the_distribution_before_it_was_truncated(tiny_models, truncated):
    """What docs/method.md says: another sampler's completions get the same figures from a scoring
    pass.
    """
    policy, plain = load(tiny_models["llama"]), Sampling(temperature=1.6, max_new_tokens=12)
    rollout = generate(policy, [0, 1, 2, 3], replace(plain, **truncated))
    scored = rescored(policy, rollout, plain)
    for field in fields(TokenStats):
        torch.testing.assert_close(
            getattr(rollout.stats, field.name), getattr(scored, field.name), rtol=1e-4, atol=1e-4
        )
    assert completions(rollout) != completions(generate(policy, [0, 1, 2, 3], plain))


def test_bfloat16_sampling_gives_float32_statistics(tiny_models):
    policy = load(tiny_models["gemma3"], dtype="bfloat16")
    rollout = generate(policy, [0, 1, 2], SAMPLINGS["plain"])
    scored = rescored(policy, rollout, SAMPLINGS["plain"])
    assert rollout.stats.logprobs.dtype == torch.float32
    assert float((rollout.stats.logprobs - scored.logprobs)[rollout.mask].abs().mean()) < 0.1


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"attention": "eager"}])
def test_how_the_model_is_run_does_not_change_completions(tiny_models, settings):
    plain = generate(load(tiny_models["llama"]), [0, 1, 2], SAMPLINGS["plain"])
    policy = load(tiny_models["llama"], **settings)
    assert completions(generate(policy, [0, 1, 2], SAMPLINGS["plain"])) == completions(plain)
    assert policy.training  # put back, or gradient checkpointing would stay off


def test_the_coin_knows_nothing_of_what_was_sampled(tiny_models):
    """At equal seeds the coin was the uniform that drew the first token (45.6 per cent of its
    variance, length +0.52).

    For independent coins the share explained by k kinds of first tokens is (k - 1) / (N - 1) on
    average; 4 sigma.
    """
    policy = load(tiny_models["llama"])
    engine, head = NativeEngine(), Random(seed=7)
    engine.setup(policy, seed=7)
    coins, first, lengths = [], [], []
    for step in range(4):
        rollout = engine.generate(
            prompts_of(policy, [0, 1, 2, 3]), 128, Sampling(max_new_tokens=4), step
        )
        coins.append(head(rollout).scores.double())
        first.append(rollout.completion_ids[:, 0] + 1000 * (rollout.completion_numbers(0) // 128))
        lengths.append(rollout.lengths.double())
    coin, length = torch.cat(coins), torch.cat(lengths)
    _, kind = torch.cat(first).unique(return_inverse=True)
    counts = kind.bincount()
    means = torch.zeros(len(counts), dtype=torch.float64).index_add(0, kind, coin) / counts
    explained = float(
        (means[kind] - coin.mean()).square().sum() / (coin - coin.mean()).square().sum()
    )
    kinds, number = len(counts), len(coin)
    assert kinds < number / 4
    expected = (kinds - 1) / (number - 1)
    assert abs(explained - expected) < 4 * (2 * expected / number) ** 0.5
    assert abs(float(torch.corrcoef(torch.stack([coin, length]))[0, 1])) < 4 / number**0.5


def test_max_rows_is_checked():
    with pytest.raises(ValueError, match="max_rows=0 must be at least 1"):
        NativeEngine(0)


@pytest.mark.parametrize("precision", ["float32", "bf16-mixed"])
def test_a_rollout_of_inference_mode_is_that_of_training(precision):
    policy = PolicyModel(Policy("rlif-arithmetic"))
    with torch.autocast(
        "cpu", torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=False
    ):
        expected = generate(policy, [0, 1, 2], SAMPLINGS["plain"])
        with torch.inference_mode():
            found = generate(policy, [0, 1, 2], SAMPLINGS["plain"])
    assert torch.equal(found.completion_ids, expected.completion_ids)
    assert torch.equal(found.stats.logprobs, expected.stats.logprobs)
