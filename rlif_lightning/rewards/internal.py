"""Rewards from the policy's own token statistics: no labels, no other completions."""

from __future__ import annotations

from torch import Tensor

from rlif_lightning.answers.extraction import AnswerExtractor, FindsAnswers
from rlif_lightning.masked import mean_over_completion
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead

DIRECTIONS = ("uniform_to_model", "model_to_uniform")
REDUCTIONS = ("mean", "sum")
ENTROPY_FLOOR = 10.0  # nats, of a completion without an answer at least


class SelfCertainty(RewardHead):
    """Mean over a completion's tokens of KL between the uniform and the next-token distribution.

    Args:
        direction: uniform_to_model: KL(U || p), https://arxiv.org/abs/2505.19590 |
            model_to_uniform: KL(p || U) = log V - entropy (log V is the same for all tokens, so it
            is left out of the score).
    """

    def __init__(self, direction: str = "uniform_to_model"):
        super().__init__()
        if direction not in DIRECTIONS:
            raise ValueError(
                f"direction={direction!r} is unknown; use one of {', '.join(DIRECTIONS)}"
            )
        self.direction = direction

    def forward(self, rollout: Rollout) -> RewardOutput:
        stats = rollout.stats
        tokens = stats.self_certainty if self.direction == "uniform_to_model" else -stats.entropy
        return RewardOutput(mean_over_completion(tokens, rollout.mask))


class Reduces:
    """What heads share that make one number of a completion's tokens.

    Args:
        reduce: mean | sum: over a completion's tokens. EM-RL (https://arxiv.org/abs/2505.15134)
            takes the sum, which punishes length.

    Raises:
        ValueError: another name.
    """

    def __init__(self, reduce: str = "mean"):
        if reduce not in REDUCTIONS:
            raise ValueError(f"reduce={reduce!r} is unknown; use one of {', '.join(REDUCTIONS)}")
        self.reduce = reduce

    def reduced(self, mean: Tensor, rollout: Rollout) -> Tensor:
        """Return ``[B]`` means over tokens, or what they sum to."""
        return mean if self.reduce == "mean" else mean * rollout.lengths


class MeanLogprob(Reduces, RewardHead):
    """Mean log-probability (nats) of a completion's tokens under the policy that sampled them.

    Args:
        reduce: mean | sum: over a completion's tokens; EM-RL's sequence reward is the sum.
    """

    def __init__(self, reduce: str = "mean"):
        RewardHead.__init__(self)
        Reduces.__init__(self, reduce)

    def forward(self, rollout: Rollout) -> RewardOutput:
        mean = mean_over_completion(rollout.stats.logprobs, rollout.mask)
        return RewardOutput(self.reduced(mean, rollout))


class NegativeEntropy(Reduces, FindsAnswers, RewardHead):
    """Minus the mean token entropy (RENT, https://arxiv.org/abs/2505.22660).

    Args:
        extractor: finds the final answer; the entropy of a completion without one is taken as at
            least 10 nats a token.
        reduce: mean | sum: over a completion's tokens; EM-RL's token reward is the sum, without a
            floor (``extractor: {kind: text}`` finds an answer everywhere).
    """

    def __init__(self, extractor: AnswerExtractor = AnswerExtractor(), reduce: str = "mean"):
        RewardHead.__init__(self)
        FindsAnswers.__init__(self, extractor)
        Reduces.__init__(self, reduce)

    def forward(self, rollout: Rollout) -> RewardOutput:
        entropy = mean_over_completion(rollout.stats.entropy, rollout.mask)
        missing = rollout.mask.new_tensor([self.extractor(text) is None for text in rollout.texts])
        entropy = entropy.where(~missing, entropy.clamp(min=ENTROPY_FLOOR))
        return RewardOutput(-self.reduced(entropy, rollout))
