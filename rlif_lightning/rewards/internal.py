"""Rewards from the policy's own token statistics: no labels, no other completions."""

from __future__ import annotations

from rlif_lightning.answers.extraction import AnswerExtractor, FindsAnswers
from rlif_lightning.masked import mean_over_completion
from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead

DIRECTIONS = ("uniform_to_model", "model_to_uniform")
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


class MeanLogprob(RewardHead):
    """Mean log-probability (nats) of a completion's tokens under the policy that sampled them."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        return RewardOutput(mean_over_completion(rollout.stats.logprobs, rollout.mask))


class NegativeEntropy(FindsAnswers, RewardHead):
    """Minus the mean token entropy (RENT, https://arxiv.org/abs/2505.22660).

    Args:
        extractor: finds the final answer; the entropy of a completion without one is taken as at
            least 10 nats.
    """

    def __init__(self, extractor: AnswerExtractor = AnswerExtractor()):
        RewardHead.__init__(self)
        FindsAnswers.__init__(self, extractor)

    def forward(self, rollout: Rollout) -> RewardOutput:
        entropy = mean_over_completion(rollout.stats.entropy, rollout.mask)
        missing = rollout.mask.new_tensor([self.extractor(text) is None for text in rollout.texts])
        return RewardOutput(-entropy.where(~missing, entropy.clamp(min=ENTROPY_FLOOR)))
