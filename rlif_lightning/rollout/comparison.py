"""What this library computes of a few rows, beside what the model itself computes of them, in nats.

The rows are scored as a packed line, twice, and decoded by the engine's own memory with their
tokens given; rows leave as they end. The model's own figures come from its own forward, one
sequence at a time, without a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlif_lightning.model.packing import pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.model.token_stats import token_stats
from rlif_lightning.records import Completions, TokenStats
from rlif_lightning.rollout.places import close_gaps
from rlif_lightning.sampling import Sampling

if TYPE_CHECKING:
    from rlif_lightning.rollout.decoders import Decoder

GROUP = 2  # completions of each prompt
FIGURES = [field.name for field in fields(TokenStats)]


@dataclass(frozen=True)
class Rows:
    """Two completions of each of some prompts.

    Attributes:
        prompts: P tensors ``[L_p]`` int64.
        ids, mask: ``[2 P, T]`` int64 and bool.
    """

    prompts: list[Tensor]
    ids: Tensor
    mask: Tensor

    def sequence(self, row: int) -> Tensor:
        """``[L_p + t]``: the prompt and the completion of a row."""
        return torch.cat([self.prompts[row // GROUP], self.ids[row][self.mask[row]]])


@dataclass(frozen=True)
class Limit:
    """How far figures may lie from the model's own.

    Args:
        nats: at most.
        median: of the tokens' differences rather than the largest one: in half precision the router
            of a mixture of experts picks another expert for a token now and then, by rounding
            alone.
        twice_alike: two scorings must agree in every bit.
    """

    nats: float
    median: bool = False
    twice_alike: bool = True


def random_rows(
    prompt_lengths: Sequence[int], lengths: Sequence[int], choices: Tensor, device: torch.device
) -> Rows:
    """Rows of tokens drawn from ``choices``, always the same ones; the global random state stays as it was."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        picked = torch.randint(len(choices), shape, generator=generator)
        return choices[picked].to(device)

    mask = torch.arange(max(lengths), device=device) < torch.tensor(
        lengths, device=device
    ).unsqueeze(1)
    ids = drawn(len(lengths), max(lengths)).where(mask, torch.zeros_like(mask, dtype=torch.int64))
    return Rows([drawn(length) for length in prompt_lengths], ids, mask)


def differences(
    policy: PolicyModel, decoder: Decoder, own: Any, rows: Rows, limit: Limit
) -> list[str]:
    """What differs from the model's own figures beyond the limit, one sentence part each; nothing if all is right.

    Args:
        policy: scores and decodes; in training mode, as it is when it is trained.
        decoder: of the policy, with room for the rows.
        own: the model that it should be, in evaluation mode; called as ``own(input_ids=...)``.
        rows: to compare on.
        limit: of every figure.
    """
    found: list[str] = []
    expected = own_stats(own, rows)
    with torch.random.fork_rng(devices=[]):
        first = _or_error("scoring a packed line", lambda: scored(policy, rows), found)
        twice = first is not None and limit.twice_alike
        again = _or_error("scoring again", lambda: scored(policy, rows), found) if twice else None
        stepped = _or_error("decoding", lambda: decoded(policy, decoder, rows), found)
    if first and again:
        apart = max(float((getattr(first, n) - getattr(again, n)).abs().max()) for n in FIGURES)
        if apart > 0:
            found.append(
                f"two scorings of the same rows differ by {apart:.2g} nats: noise stays on"
            )
    for what, figures in (
        ("scores of a packed line differ", first),
        ("scores while decoding differ", stepped),
    ):
        apart = 0.0 if figures is None else distance(figures, expected, rows.mask, limit.median)
        if not apart <= limit.nats:
            kind = "the median is " if limit.median else ""
            found.append(
                f"{what} from the model's own forward by {kind}{apart:.2g} nats (limit"
                f" {limit.nats:g})"
            )
    return found


def _or_error(what: str, compute: Callable[[], TokenStats], found: list[str]) -> TokenStats | None:
    """The result; where an architecture's code raises, a sentence part goes to ``found`` instead."""
    try:
        return compute()
    except Exception as error:
        found.append(f"{what} raises {type(error).__name__}: {str(error)[:300]}")
        return None


def distance(figures: TokenStats, expected: TokenStats, mask: Tensor, median: bool) -> float:
    """Largest (or median) difference of the tokens' log-probs, entropies and self-certainties; NaN if one is."""
    apart = [
        (getattr(figures, n).double() - getattr(expected, n).double()).abs()[mask] for n in FIGURES
    ]
    worst = torch.stack(apart).amax(0)
    return float(worst.median() if median else worst.max())


@torch.no_grad()
def own_stats(own: Any, rows: Rows) -> TokenStats:
    """``[B, T]`` figures of the model's own forward, its scaling of logits included."""
    lines = []
    for row, keep in enumerate(rows.mask):
        sequence, length = rows.sequence(row), int(keep.sum())
        logits = own(input_ids=sequence[None], use_cache=False).logits[0, -length - 1 : -1]
        figures = token_stats(logits, sequence[-length:])
        lines.append(torch.stack([_padded(getattr(figures, name), len(keep)) for name in FIGURES]))
    return TokenStats(*torch.stack(lines, 1))


def _padded(values: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - len(values)))


@torch.no_grad()
def scored(policy: PolicyModel, rows: Rows) -> TokenStats:
    """``[B, T]`` figures of all rows in one packed line."""
    whole = sum(map(len, rows.prompts)) + rows.mask.numel()
    [packed] = pack(Completions(rows.prompts, rows.ids, rows.mask, GROUP), whole)
    order = packed.rows.argsort()
    return policy(packed, Sampling()).map(lambda values: values[order])


@torch.no_grad()
def decoded(policy: PolicyModel, decoder: Decoder, rows: Rows) -> TokenStats:
    """``[B, T]`` figures of the rows' tokens, given one after the other to the native engine's memory."""
    num_steps, rule, training = (
        rows.ids.shape[1],
        policy.rule(Sampling(), rows.ids.device),
        policy.training,
    )
    device = rows.ids.device
    policy.eval()
    places = range(len(rows.ids))
    hidden = decoder.admit([place // GROUP for place in places], places)
    left, lengths = torch.arange(len(rows.ids)), rows.mask.sum(1).cpu()
    table = torch.zeros((len(FIGURES), *rows.ids.shape), dtype=torch.float64, device=device)
    for step in range(num_steps):
        tokens = rows.ids[left.to(device), step]
        figures = token_stats(rule.apply(policy.head(hidden[: len(left)])), tokens)
        table[:, left.to(device), step] = torch.stack(
            [getattr(figures, name).double() for name in FIGURES]
        )
        stays = lengths[left] > step + 1
        if not stays.any():
            break
        if not stays.all():
            arrangement = close_gaps(stays, True, device)
            decoder.arrange(arrangement)
            left, tokens = left[arrangement.source], tokens[arrangement.source.to(device)]
        decoder.prepare()
        hidden = decoder.advance(
            torch.nn.functional.pad(tokens, (0, decoder.num_places(len(left)) - len(left)))
        )
    policy.train(training)
    return TokenStats(*table)
