"""Drawing tokens: settings, counter-based uniforms, inverse cumulative distribution; importance ratios. Pure functions.

The uniform that draws token t of completion g of data-set row i in rollout s depends on (seed,
s, i, g, t) alone, so a completion does not change with its batch, with early leaving, with the
number of ranks, or on resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

# Steps of the sampling counters far from any training step: evaluations draw the same uniforms
# every time.
VALIDATION_STEP, PREDICTION_ROLLOUT = 2**62, 2**62 + 1
# A word of its own for each use of counted random numbers: equal seeds and steps never give two
# uses one stream. Two users have none: the order of training prompts and the bootstrap, which draw
# from different problems.
PURPOSES = {"sampling": 0, "coin": 1, "shuffle": 2, "preflight": 3, "request": 4}
SUM_BLOCK = 256  # weights summed before they are accumulated
MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: keeps a ratio finite in float32 with room to multiply


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Args:
        temperature: divides the logits, > 0; 0 = greedy (evaluation only).
        max_new_tokens: limit of a completion's length, in tokens.
        min_new_tokens: no end of sequence before this many tokens.
        top_k: keep the k most likely tokens; 0 = off. Refused in training: it biases the importance
            ratio. Token statistics (log-prob, entropy, self-certainty) are of the distribution
            before it, under every engine.
        top_p: keep the smallest set of tokens of this probability; 1 = off. As top_k in all else.
        stop: strings at which a completion ends; the text is cut before the first of them. Such a
            completion has no end of sequence among its tokens.
        train_stop: a completion that a stop string ended gets an end of sequence as its last token,
            where max_new_tokens leaves room: not drawn, but trained on and counted like the others.
            Off: a policy that always ends by stop strings never learns to end. Needs
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
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} must be positive, or 0 for greedy")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens or self.max_new_tokens < 1:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens}, max_new_tokens={self.max_new_tokens}: need"
                " 0 <= min <= max"
                " and max >= 1"
            )
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"top_k={self.top_k}, top_p={self.top_p}: need top_k >= 0 (0 = off) and 0 < top_p"
                " <= 1"
            )
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop={self.stop!r} must be a list of strings that are not empty")
        if self.train_stop and (not self.stop or self.min_new_tokens):
            raise ValueError(
                "train_stop=true needs stop strings and min_new_tokens=0 (got"
                f" stop={list(self.stop)}, min_new_tokens="
                f"{self.min_new_tokens}): the end of sequence that it appends could be impossible"
                " there"
            )

    def check_trainable(self) -> None:
        """Refuses settings whose log-probs would not be those of the distribution sampled from.

        Raises:
            ValueError: names the setting.
        """
        if self.top_k or self.top_p < 1:
            raise ValueError(
                f"sampling.top_k={self.top_k}, top_p={self.top_p}: truncated sampling biases the"
                " importance ratio; "
                "use top_k=0 and top_p=1 to train (evaluation may truncate)"
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
    """Uniforms in [0, 1) that depend on their counters alone (the Philox generator).

    Args:
        seed: of the run, >= 0.
        rollout_number: of the run, >= 0.
        index: B data-set rows.
        completion: B numbers of the completion in its group.
        num_tokens: T.
        purpose: what they are for, one of ``PURPOSES``; two purposes share no number.

    Returns:
        ``[B, T]`` float64 on the CPU. The first T columns are the same whatever ``num_tokens`` is.
    """
    word = PURPOSES[purpose]  # the first word of the counter counts the numbers of a stream
    rows = [
        np.random.Generator(
            np.random.Philox(key=[seed, rollout_number], counter=[0, word, g, i])
        ).random(num_tokens)
        for i, g in zip(index, completion, strict=True)
    ]
    return torch.from_numpy(np.stack(rows))


def purpose_seeds(purpose: str, *counters: int) -> np.random.SeedSequence:
    """Seeds of a numpy generator from counters >= 0 and what it is for, one of ``PURPOSES``.

    Counters alone would not do: to numpy ``[seed, epoch]`` and ``[seed, epoch, 0]`` are the same.
    """
    return np.random.SeedSequence(counters, spawn_key=(PURPOSES[purpose],))


def request_seed(seed: int, rollout_number: int, index: int) -> int:
    """Derive the seed of one prompt's completions from (seed, rollout number, row) alone.

    It is for samplers with a generator of their own. Such samplers add the completion's number to
    it, so seeds stay 2**62 below the end of int64.
    """
    return int(
        purpose_seeds("request", seed, rollout_number, index).generate_state(1, np.uint64)[0]
        >> np.uint64(2)
    )


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string."""
    ends = [text.find(string) for string in stop if string in text]
    return text[: min(ends)] if ends else text


def sample_tokens(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row by the inverse of the cumulative distribution, without sorting.

    Args:
        logits: ``[N, V]``, divided by the temperature; -inf = impossible.
        uniforms: ``[N]`` in [0, 1).

    Returns:
        ``[N]`` int64: the first token whose cumulative probability exceeds the uniform.
    """
    logits = logits if logits.dtype.itemsize >= 4 else logits.float()
    return sample_weights((logits - logits.amax(-1, keepdim=True)).exp(), uniforms)


def sample_weights(weights: Tensor, uniforms: Tensor) -> Tensor:
    """As :func:`sample_tokens`, from weights ``[N, V]`` >= 0 that are proportional to the probabilities.

    Only sums of blocks of weights are accumulated over the whole vocabulary, then the weights of
    one block: a double-precision cumulative sum over all of a large vocabulary would cost more than
    the layer that made it.
    """
    size = weights.shape[1]
    uniforms = uniforms.to(weights.device).double().unsqueeze(1)
    if size <= SUM_BLOCK:
        return _first_beyond(weights, uniforms, relative=True)[0].squeeze(1)
    whole = size - size % SUM_BLOCK
    sums = weights[:, :whole].unflatten(1, (-1, SUM_BLOCK)).sum(-1)
    if whole < size:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], 1)
    chosen, before, target = _first_beyond(sums, uniforms, relative=True)
    columns = chosen * SUM_BLOCK + torch.arange(SUM_BLOCK, device=weights.device)
    inside = weights.gather(1, columns.clamp(max=size - 1)).masked_fill(columns >= size, 0.0)
    token, _, _ = _first_beyond(inside, (target - before).clamp(min=0))
    return (chosen * SUM_BLOCK + token).squeeze(1)


def _first_beyond(
    weights: Tensor, target: Tensor, relative: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """First position whose cumulative weight exceeds ``target [N, 1]``, what came before it, and the target.

    A ``relative`` target is a share of the whole weight. Rounding could carry it beyond the last
    position that has any weight; that position is taken then.
    """
    cumulative = weights.double().cumsum(-1)
    target = target * cumulative[:, -1:] if relative else target
    last_possible = (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
    chosen = torch.minimum(torch.searchsorted(cumulative, target, right=True), last_possible)
    before = cumulative.gather(1, chosen) - weights.gather(1, chosen).double()
    return chosen, before, target


def truncate_logits(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Set all but the ``top_k`` tokens / the smallest set of probability ``top_p`` to -inf: ``[N, V] -> [N, V]``.

    The most likely token is always kept; tokens tied with the last kept one are kept too.
    """
    if top_k:
        threshold = logits.topk(min(top_k, logits.shape[-1]), -1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p < 1:
        # Not rounded: the threshold must be one of the logits.
        ordered, _ = (logits if logits.dtype.itemsize >= 4 else logits.float()).sort(
            -1, descending=True
        )
        probs = ordered.softmax(-1)
        before = probs.cumsum(-1) - probs
        threshold = torch.where(before < top_p, ordered, torch.inf).amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    return logits


def importance_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """``rho = exp(clamp(logprobs - old_logprobs, -20, 20))``, elementwise."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
