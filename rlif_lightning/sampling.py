"""Sampling: settings, counter-based uniforms, drawing by inverse CDF, importance ratios.

The uniform that draws token t of completion g of problem i in rollout s depends on (seed, s, i, g,
t) alone. So a completion does not change with its batch, with completions that end before it, with
the number of data ranks, or on resume. The functions are pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rlif_lightning.setting_types import check_types

# Rollout numbers far from any in training: every evaluation draws the same uniforms.
VALIDATION_STEP, PREDICTION_ROLLOUT, JUDGE_ROLLOUT = 2**62, 2**62 + 1, 2**62 + 2
# Each use of counter-based random numbers has a word of its own, so equal seeds and rollout numbers
# never give two uses the same stream. Two users have none, the order of training prompts and the
# bootstrap: they draw from different problems.
PURPOSES = dict(
    sampling=0,
    coin=1,
    shuffle=2,
    preflight=3,
    request=4,
    redraw=5,
    replay=6,
    criteria=7,
    stream=8,
    episode=9,
    turn=10,
)
SUM_BLOCK = 256  # token weights that are summed before the sums are accumulated
MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: keeps a ratio finite in float32 with room to multiply


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Args:
        temperature: divides the logits, > 0; 0 = greedy (evaluation only).
        max_new_tokens: limit of a completion's length, in tokens.
        min_new_tokens: no end of sequence before this many tokens.
        top_k: keep the k most likely tokens; 0 = off. Refused in training: it biases the importance
            ratio. Under every engine, token statistics (log-prob, entropy, self-certainty) are
            those of the distribution before it.
        top_p: keep the smallest set of tokens of this probability; 1 = off. Otherwise as top_k.
        stop: strings at which a completion ends; the text is cut before the first of them. Such a
            completion has no end of sequence among its tokens.
        train_stop: append an end of sequence to a completion that a stop string ended, where
            max_new_tokens leaves room. That token is not drawn, but trained on and counted like the
            others. Without it, a policy that always ends by stop strings never learns to end. Needs
            min_new_tokens=0.
    """

    temperature: float = 1.0
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    top_k: int = 0
    top_p: float = 1.0
    stop: Sequence[str] = field(default_factory=tuple)
    train_stop: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} must be positive, or 0 for greedy")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens or self.max_new_tokens < 1:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens}, max_new_tokens={self.max_new_tokens}: need"
                " 0 <= min <= max and max >= 1"
            )
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"top_k={self.top_k}, top_p={self.top_p}: need top_k >= 0 (0 = off) and 0 < top_p"
                " <= 1"
            )
        if not all(self.stop):
            raise ValueError(f"stop={self.stop!r} must be a list of strings that are not empty")
        if self.train_stop and (not self.stop or self.min_new_tokens):
            raise ValueError(
                "train_stop=true needs stop strings and min_new_tokens=0 (got"
                f" stop={list(self.stop)}, min_new_tokens={self.min_new_tokens}): the end of"
                " sequence that it appends could be impossible there"
            )

    def check_trainable(self) -> None:
        """Refuse settings whose log-probs would not be those of the sampled distribution.

        Raises:
            ValueError: names the setting.
        """
        if self.top_k or self.top_p < 1:
            raise ValueError(
                f"sampling.top_k={self.top_k}, top_p={self.top_p}: truncated sampling biases the"
                " importance ratio; use top_k=0 and top_p=1 to train (evaluation may truncate)"
            )
        if self.temperature == 0:
            raise ValueError(
                "sampling.temperature=0 is greedy: every group would agree; use a positive value"
                " to train"
            )


def counter_uniforms(
    seed: int,
    rollout_number: int,
    index: Sequence[int],
    completion: Sequence[int],
    num_tokens: int,
    purpose: str = "sampling",
) -> Tensor:
    """Draw uniforms in [0, 1) that depend on their counters alone (the Philox generator).

    Args:
        seed: of the run, >= 0.
        rollout_number: of the run, >= 0.
        index: B numbers of problems in their data set.
        completion: B numbers of completions in their groups.
        num_tokens: T.
        purpose: one of ``PURPOSES``; two purposes share no number.

    Returns:
        ``[B, T]`` float64 on the CPU. The first T columns are the same whatever ``num_tokens`` is.
    """
    word = PURPOSES[purpose]  # the counter's first word, 0 here, counts the numbers of a stream
    streams = [
        np.random.Generator(
            np.random.Philox(key=[seed, rollout_number], counter=[0, word, g, i])
        ).random(num_tokens)
        for i, g in zip(index, completion, strict=True)
    ]
    return torch.from_numpy(np.stack(streams))


def purpose_seeds(purpose: str, *counters: int) -> np.random.SeedSequence:
    """Return the seeds of a numpy generator, from counters >= 0 and one of ``PURPOSES``.

    The purpose is a spawn key: numpy takes counters ``[seed, epoch]`` and ``[seed, epoch, 0]`` for
    the same.
    """
    return np.random.SeedSequence(counters, spawn_key=(PURPOSES[purpose],))


def request_seed(seed: int, rollout_number: int, index: int) -> int:
    """Derive the seed of one prompt's completions from (seed, rollout number, problem) alone.

    It is for samplers with a generator of their own. Such samplers add the completion's number to
    it, so seeds stay below 2**62.
    """
    return int(
        purpose_seeds("request", seed, rollout_number, index).generate_state(1, np.uint64)[0]
        >> np.uint64(2)
    )


def turn_seed(seed: int, rollout_number: int, index: int, completion: int, turn: int) -> int:
    """Derive the seed of a later turn of one completion, as :func:`request_seed`.

    A first turn has none: it is drawn with the whole group, by the problem's request.
    """
    seeds = purpose_seeds("turn", seed, rollout_number, index, completion, turn)
    return int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(2))


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first stop string."""
    ends = [text.find(string) for string in stop if string in text]
    return text[: min(ends)] if ends else text


def sample_weights(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per distribution by the inverse of its CDF, without sorting.

    Sums of blocks are accumulated over the vocabulary, and then the token weights of one block. A
    double-precision cumulative sum over a whole large vocabulary would cost more than the layer
    that computed the logits. With blocks of 2 instead of 256 and a uniform of 0.7:

        token weights    1  0 | 2  1 | 0  4       sums of blocks    1  3  4, accumulated 1  4  8
        target           0.7 * 8 = 5.6            lies in block 2, where 4 come before
        inside           0  4, accumulated 0  4   the first beyond 5.6 - 4 = 1.6 is token 1: token 5

    Args:
        weights: ``[N, V]`` token weights >= 0, proportional to the probabilities.
        uniforms: ``[N]`` in [0, 1).

    Returns:
        ``[N]`` int64: the first token whose cumulative probability exceeds the uniform.
    """
    size = weights.shape[1]
    uniforms = uniforms.to(weights.device).double().unsqueeze(1)
    if size <= SUM_BLOCK:
        return _first_beyond(weights, uniforms, relative=True)[0].squeeze(1)
    whole = size - size % SUM_BLOCK
    sums = weights[:, :whole].unflatten(1, (-1, SUM_BLOCK)).sum(-1)  # [N, blocks]
    if whole < size:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], 1)
    chosen, before, target = _first_beyond(sums, uniforms, relative=True)
    columns = chosen * SUM_BLOCK + torch.arange(SUM_BLOCK, device=weights.device)  # [N, block]
    inside = weights.gather(1, columns.clamp(max=size - 1)).masked_fill(columns >= size, 0.0)
    token, _, _ = _first_beyond(inside, (target - before).clamp(min=0))
    return (chosen * SUM_BLOCK + token).squeeze(1)


def _first_beyond(
    weights: Tensor, target: Tensor, relative: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the first column whose cumulative weight exceeds ``target`` ``[N, 1]``.

    A ``relative`` target is a fraction of the total weight. Rounding could carry it beyond the last
    column that has any weight; that column is chosen then.

    Returns:
        The column, the total weight before it, and the target as a weight, ``[N, 1]`` each.
    """
    cumulative = weights.double().cumsum(-1)
    target = target * cumulative[:, -1:] if relative else target
    last_possible = (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
    chosen = torch.minimum(torch.searchsorted(cumulative, target, right=True), last_possible)
    before = cumulative.gather(1, chosen) - weights.gather(1, chosen).double()
    return chosen, before, target


def truncate_logits(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Set all ``[N, V]`` logits to -inf but the ``top_k`` largest and the set of ``top_p``.

    The most likely token is always kept; tokens tied with the last kept one are kept too.
    """
    if top_k:
        threshold = logits.topk(min(top_k, logits.shape[-1]), -1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p < 1:
        # The logits must not be rounded: the threshold is compared with them.
        ordered, _ = (logits if logits.dtype.itemsize >= 4 else logits.float()).sort(
            -1, descending=True
        )
        probs = ordered.softmax(-1)
        before = probs.cumsum(-1) - probs
        threshold = torch.where(before < top_p, ordered, torch.inf).amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    return logits


def importance_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Return ``rho = exp(clamp(logprobs - old_logprobs, -20, 20))``, elementwise."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
