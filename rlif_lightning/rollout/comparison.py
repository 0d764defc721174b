"""Compare token statistics of this library with those of the model's own forward, in nats.

A few completions are measured as a packed line, twice, and decoded by the engine's own memory with
their tokens given; completions leave the batch when they end. The model's own statistics come from
its own forward, one sequence at a time, without a cache.
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
    from rlif_lightning.rollout.decoder_base import Decoder

GROUP = 2  # completions of each prompt
STATISTICS = [field.name for field in fields(TokenStats)]


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
        """Return the prompt and the completion of a row, ``[L_p + t]``."""
        return torch.cat([self.prompts[row // GROUP], self.ids[row][self.mask[row]]])


@dataclass(frozen=True)
class Limit:
    """The largest difference from the model's own statistics that is allowed.

    Args:
        nats: the limit.
        median: limit the median of the tokens' differences instead of the largest. In half
            precision rounding alone makes a router pick another expert for a token now and then.
        twice_alike: two passes over the same tokens must agree in every bit.
    """

    nats: float
    median: bool = False
    twice_alike: bool = True


def random_rows(
    prompt_lengths: Sequence[int], lengths: Sequence[int], choices: Tensor, device: torch.device
) -> Rows:
    """Draw rows of tokens from ``choices``, the same ones in every call.

    The global random state stays as it was.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        picked = torch.randint(len(choices), shape, generator=generator)
        return choices[picked].to(device)

    ends = torch.tensor(lengths, device=device).unsqueeze(1)
    mask = torch.arange(max(lengths), device=device) < ends  # [2 P, T]
    ids = drawn(len(lengths), max(lengths)).where(mask, torch.zeros_like(mask, dtype=torch.int64))
    return Rows([drawn(length) for length in prompt_lengths], ids, mask)


def differences(
    policy: PolicyModel, decoder: Decoder, own: Any, rows: Rows, limit: Limit
) -> list[str]:
    """Return each difference from the model's own statistics beyond the limit, as a clause.

    Args:
        policy: measures and decodes, in training mode, as in an update.
        decoder: of the policy, with places for the rows.
        own: the model that it should equal, in evaluation mode; called as ``own(input_ids=...)``.
        rows: the completions to compare on.
        limit: of every statistic.
    """
    found: list[str] = []
    expected = own_stats(own, rows)
    with torch.random.fork_rng(devices=[]):
        first = _or_error("a packed pass", lambda: measured(policy, rows), found)
        twice = first is not None and limit.twice_alike
        again = _or_error("a second pass", lambda: measured(policy, rows), found) if twice else None
        stepped = _or_error("decoding", lambda: decoded(policy, decoder, rows), found)
    if first and again:
        apart = max(float((getattr(first, n) - getattr(again, n)).abs().max()) for n in STATISTICS)
        if apart > 0:
            found.append(
                f"two passes over the same completions differ by {apart:.2g} nats: noise stays on"
            )
    for what, stats in (
        ("statistics of a packed pass differ", first),
        ("statistics of decoding differ", stepped),
    ):
        apart = 0.0 if stats is None else distance(stats, expected, rows.mask, limit.median)
        if not apart <= limit.nats:
            kind = "the median is " if limit.median else ""
            found.append(
                f"{what} from the model's own forward by {kind}{apart:.2g} nats (limit"
                f" {limit.nats:g})"
            )
    return found


def _or_error(what: str, compute: Callable[[], TokenStats], found: list[str]) -> TokenStats | None:
    """Return the result; if an architecture's code raises, append a clause to ``found``."""
    try:
        return compute()
    except Exception as error:
        found.append(f"{what} raises {type(error).__name__}: {str(error)[:300]}")
        return None


def distance(stats: TokenStats, expected: TokenStats, mask: Tensor, median: bool) -> float:
    """Return the largest (or median) difference of the tokens' statistics; NaN if one is NaN."""
    apart = [
        (getattr(stats, n).double() - getattr(expected, n).double()).abs()[mask] for n in STATISTICS
    ]
    worst = torch.stack(apart).amax(0)
    return float(worst.median() if median else worst.max())


@torch.no_grad()
def own_stats(own: Any, rows: Rows) -> TokenStats:
    """Compute statistics ``[B, T]`` by the model's own forward, its scaling of logits included."""
    lines = []
    for row, keep in enumerate(rows.mask):
        sequence, length = rows.sequence(row), int(keep.sum())
        logits = own(input_ids=sequence[None], use_cache=False).logits[0, -length - 1 : -1]
        stats = token_stats(logits, sequence[-length:])
        lines.append(torch.stack([_padded(getattr(stats, name), len(keep)) for name in STATISTICS]))
    return TokenStats(*torch.stack(lines, 1))


def _padded(values: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - len(values)))


@torch.no_grad()
def measured(policy: PolicyModel, rows: Rows) -> TokenStats:
    """Compute statistics ``[B, T]`` of all rows in one packed line."""
    whole = sum(map(len, rows.prompts)) + rows.mask.numel()
    [packed] = pack(Completions(rows.prompts, rows.ids, rows.mask, GROUP), whole)
    order = packed.rows.argsort()
    return policy(packed, Sampling()).map(lambda values: values[order])


@torch.no_grad()
def decoded(policy: PolicyModel, decoder: Decoder, rows: Rows) -> TokenStats:
    """Compute statistics ``[B, T]`` by decoding the rows' tokens one after the other."""
    device, training = rows.ids.device, policy.training
    rule = policy.rule(Sampling(), device)
    policy.eval()
    places = range(len(rows.ids))
    hidden = decoder.admit([place // GROUP for place in places], places)
    left, lengths = torch.arange(len(rows.ids)), rows.mask.sum(1).cpu()
    table = torch.zeros((len(STATISTICS), *rows.ids.shape), dtype=torch.float64, device=device)
    for position in range(rows.ids.shape[1]):
        tokens = rows.ids[left.to(device), position]  # [left]
        stats = token_stats(rule.apply(policy.head(hidden[: len(left)])), tokens)
        found = torch.stack([getattr(stats, name).double() for name in STATISTICS])  # [3, left]
        table[:, left.to(device), position] = found
        stays = lengths[left] > position + 1
        if not stays.any():
            break
        if not stays.all():
            arrangement = close_gaps(stays, True, device)
            decoder.arrange(arrangement)
            left, tokens = left[arrangement.source], tokens[arrangement.source.to(device)]
        decoder.prepare()
        empty = decoder.num_places(len(left)) - len(left)
        hidden = decoder.advance(torch.nn.functional.pad(tokens, (0, empty)))
    policy.train(training)
    return TokenStats(*table)
