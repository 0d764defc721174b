"""AnswerTokens: where an answer's tokens are, and what gradient they get."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from restatement import loss_and_gradient
from transformers import AutoTokenizer

from harness.files import ROOT
from harness.objectives import OBJECTIVES, inputs
from harness.rollouts import handmade
from harness.runs import ONE, assert_same, column, fit, parameters
from rlif_lightning import AnswerTokens
from rlif_lightning.answers.extraction import AnswerExtractor
from rlif_lightning.learning.answer_tokens import token_span, weighed
from rlif_lightning.learning.entropy_minimisation import EntropyMinimisation
from rlif_lightning.learning.objectives import Clipped
from rlif_lightning.learning.ratio_objectives import GMPO

PIECES = ["7", "+5", "=1", "2", "", ".", "<cut>"]


def decode(ids) -> str:
    return "".join(PIECES[number] for number in ids)


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((4, 6), (2, 4)),  # "12": its first token has the "=" as well
        ((5, 6), (3, 4)),
        ((0, 1), (0, 1)),
        ((3, 4), (2, 3)),
        ((6, 7), (5, 6)),  # the token without text is no part of it
        ((0, 7), (0, 6)),
    ],
)
def test_hand_worked_places(span, expected):
    ids = [0, 1, 2, 3, 4, 5, 6]
    assert token_span(ids, "7+5=12.", span, decode) == expected


def test_an_independent_restatement_on_random_pieces():
    """Each character's token, counted one by one; a token counts with any of its characters."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        ids = torch.randint(0, 6, (9,), generator=generator).tolist()
        owners = [place for place, number in enumerate(ids) for _ in PIECES[number]]
        if not owners:
            continue
        begin, end = sorted(torch.randint(0, len(owners) + 1, (2,), generator=generator).tolist())
        if begin == end:
            continue
        expected = owners[begin], owners[end - 1] + 1
        assert token_span(ids, decode(ids), (begin, end), decode) == expected


def test_what_cannot_be_located_is_none():
    """Bytes of one character decode to a mark of their own; and a text that nothing decodes to."""

    def of_bytes(ids) -> str:
        return bytes(ids).decode(errors="replace")

    ids = list("x=\u00bd".encode())  # 120, 61, 194, 189
    assert token_span(ids, of_bytes(ids), (2, 3), of_bytes) == (2, 4)
    assert token_span(ids, "y=\u00bd", (2, 3), of_bytes) is None
    assert token_span(ids, "x=\u00bd and more", (2, 8), of_bytes) is None


def rollout_of(texts: list[str], group_size: int, tokenizer):
    ids = [tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, ids))
    rollout = handmade(texts, group_size)
    mask = torch.arange(width) < torch.tensor([[len(row)] for row in ids])
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    stats = rollout.stats.map(lambda _: torch.zeros(mask.shape))
    return replace(rollout, completion_ids=padded, mask=mask, stats=stats)


def test_factors_of_real_tokens():
    """The embedded tokenizer has a token for each number below 100."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "rlif_lightning/assets/base_model")
    texts = ["12+3=15;15+9=24####24", "7+8=115", "+ + +", "7=7"]
    rollout = rollout_of(texts, 2, tokenizer)
    part = AnswerTokens(0.25, AnswerExtractor("last_number"))
    factors, figures = part.factors(rollout, tokenizer)
    for row, answer in enumerate(("24", "115", "", "7")):
        marked = rollout.completion_ids[row][factors[row] == 0.25]
        assert tokenizer.decode(marked) == answer
    assert set(factors.unique().tolist()) == {0.25, 1.0}
    assert bool((factors[~rollout.mask] == 1).all())
    number = int((factors == 0.25).sum())
    assert figures["answer/located"] == 1.0
    assert figures["answer/tokens"] == number / int(rollout.mask.sum())
    other = replace(rollout, texts=["99+99=24", *texts[1:]])  # a text of other tokens
    factors, figures = part.factors(other, tokenizer)
    assert figures["answer/located"] == pytest.approx(2 / 3)
    assert bool((factors[0] == 1).all())
    dropped = replace(rollout, mask=rollout.mask & (torch.arange(4) > 1).unsqueeze(1))
    factors, figures = part.factors(dropped, tokenizer)
    assert bool((factors[:2] == 1).all())


def test_factors_multiply_weights_that_are_there():
    rollout = handmade(["1", "2"], 2)
    factors = torch.tensor([[1.0, 0.5, 1.0], [0.0, 1.0, 1.0]])
    assert weighed(rollout, factors).token_weights is factors
    again = weighed(weighed(rollout, factors), factors)
    torch.testing.assert_close(again.token_weights, factors**2)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_a_token_s_factor_scales_its_own_gradient_alone(objective):
    """The policy loss without KL and entropy: but for those with one ratio for a completion."""
    batch = inputs(objective)
    free = {"entropy_bonus": 0.0, "reference_kl": type(objective.reference_kl)()}
    objective = replace(objective, **free)
    generator = torch.Generator().manual_seed(0)
    factors = torch.where(torch.rand(batch.mask.shape, generator=generator) < 0.5, 0.25, 1.0)
    marks = objective.select(batch)
    weighted = replace(batch, token_weights=factors)
    if isinstance(objective, EntropyMinimisation):  # its gradient comes by the entropy
        plain, scaled = (objective.token_loss(each, marks) for each in (batch, weighted))
    else:
        _, plain = loss_and_gradient(objective, batch, marks)
        _, scaled = loss_and_gradient(objective, weighted, marks)
    is_exact = torch.allclose(scaled, plain * factors, rtol=1e-5, atol=1e-7)
    is_refused = isinstance(objective, GMPO)
    assert is_exact != is_refused
    if is_refused:
        with pytest.raises(ValueError, match="has one ratio for a whole completion"):
            AnswerTokens().check(objective)
    else:
        AnswerTokens().check(objective)


def test_a_factor_of_one_changes_nothing_and_others_do(tmp_path):
    short = [*ONE, "--trainer.limit_val_batches=0"]
    plain = fit(tmp_path / "plain", *short)
    same = fit(tmp_path / "one", *short, "--model.answer_tokens.factor=1")
    assert_same(parameters(same), parameters(plain))
    assert column(tmp_path / "one", "answer/located") == [1.0]
    none = fit(tmp_path / "none", *short, "--model.answer_tokens.factor=0")
    assert any(
        not torch.equal(value, parameters(plain)[name]) for name, value in parameters(none).items()
    )
    norms = "reward/vote/gradient_norm"
    assert column(tmp_path / "none", norms)[0] < column(tmp_path / "one", norms)[0]


def test_bad_settings_are_refused(tmp_path, capsys):
    for factor in (-0.1, 1.5):
        with pytest.raises(ValueError, match=r"answer_tokens.factor=.* must lie in \[0, 1\]"):
            AnswerTokens(factor)
    with pytest.raises(ValueError, match="factor=nan of AnswerTokens must be a number"):
        AnswerTokens(float("nan"))
    with pytest.raises(SystemExit):
        fit(tmp_path, "--model.answer_tokens.factor=0", "--model.objective=GMPO")
    assert "GMPO has one ratio for a whole completion" in " ".join(capsys.readouterr().err.split())
    AnswerTokens().check(Clipped())
