"""What the vLLM engines share: weights for vLLM's copy, requests, and checks of its log-probs.

vLLM draws the completions. The policy computes everything that the loss needs. See docs/vllm.md.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.processes.collectives import (
    all_process_attempt,
    all_rank_max,
    all_rank_mean_std,
)
from rlif_lightning.records import Prompts, Rollout
from rlif_lightning.rollout.draws_ahead import Asked
from rlif_lightning.rollout.episodes import EpisodeDriver, EpisodeEngine
from rlif_lightning.rollout.external_samples import Drawn, Draws, as_rollout
from rlif_lightning.rollout.importance_weights import Correction
from rlif_lightning.rollout.turn_rounds import TurnRounds, by_row
from rlif_lightning.rollout.vllm_http import VLLMError
from rlif_lightning.rollout.vllm_weights import fingerprint, merged_weights
from rlif_lightning.sampling import Sampling, request_seed

PROBE_PROMPTS, PROBE_TOKENS = 8, 8
# The probe allows max_gap / PROBE_SHARE: greedy tokens are the likeliest ones, whose log-probs
# rounding changes least.
PROBE_SHARE = 5
BIAS = -100.0  # the lowest that vLLM takes
NEUTRAL = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class Sampler(Protocol):
    """A running vLLM: inside this process, or a server.

    Attributes:
        max_length: tokens of the longest prompt and completion together that it takes.
    """

    max_length: int

    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Replace the weights, and discard the keys and values of the old ones."""

    def generate(
        self, prompt_ids: Sequence[list[int]], requests: Sequence[dict[str, Any]]
    ) -> list[list[Drawn]]:
        """Draw ``n`` completions for each prompt, in order."""
        ...


class VLLMBaseEngine(EpisodeEngine):
    """An engine whose completions vLLM draws; subclasses say where vLLM runs.

    Weights are copied to vLLM before the first rollout after any change. vLLM's log-probs are used
    for two things only: the logged gap, and the token weights of the policy loss that correct for
    it.

    Args:
        max_ratio: bound of a token's weight exp(policy's log-prob - vLLM's); None = no weights.
        correction: how the weights follow from the log-probs (``importance_weights.py``).
        max_gap: the largest mean |difference| of log-probs (nats) of a training rollout.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        max_ratio: float | None = 2.0,
        max_gap: float = 0.5,
        correction: str = "token_truncate",
    ):
        self.weighting = None if max_ratio is None else Correction(max_ratio, correction)
        if max_ratio is None and correction != "token_truncate":
            raise ValueError(
                f"correction={correction} has no effect with max_ratio=null; set max_ratio"
            )
        if max_gap <= 0:
            raise ValueError(f"max_gap={max_gap} must be positive")
        self.max_ratio, self.max_gap = max_ratio, max_gap
        self.sampler: Sampler | None = None
        self.loaded: Tensor | None = None  # fingerprint of the weights that vLLM has
        self.probed = False

    @abstractmethod
    def _check_place(self) -> None:
        """Refuse processes and an installation in which vLLM could not start."""

    @abstractmethod
    def _start(self) -> Sampler:
        """Start vLLM, or connect to it."""

    def setup(self, policy: PolicyModel, seed: int) -> None:
        self.policy, self.seed, self.probed = policy, seed, False

    def check(self, sampling: Sampling) -> None:
        if sampling.stop and sampling.min_new_tokens:
            raise ValueError(
                f"sampling.stop={list(sampling.stop)} with"
                f" min_new_tokens={sampling.min_new_tokens}: vLLM does not look for stop strings"
                " before that many tokens, unlike the native engine; set only one of them"
            )
        if self.sampler is None:
            self._check_place()

    @torch.no_grad()
    def generate(
        self, prompts: Prompts, group_size: int, sampling: Sampling, rollout_number: int
    ) -> Rollout:
        self.check(sampling)
        if prompts.environment is not None:
            self.check_environment(prompts.environment.settings, sampling)
        draws, staleness = self._completions(prompts, group_size, sampling, rollout_number)
        rollout = as_rollout(self.policy, draws, sampling, self.scoring_tokens, self.weighting)
        if draws.turns is not None:
            rollout = self.with_turns(rollout, draws.turns)
        if staleness is not None:
            of_each = torch.full_like(rollout.lengths, staleness)  # [B]
            rollout = replace(rollout, staleness=of_each)
        if not staleness:
            self._check_gap(rollout, sampling)
        return rollout

    def _completions(
        self, prompts: Prompts, group_size: int, sampling: Sampling, rollout_number: int
    ) -> tuple[Draws, int | None]:
        """Draw this data rank's completions (a collective).

        Returns:
            The completions, and on how many rollouts the policy has trained since it had the
            weights that drew them; None where these are always the present weights.
        """
        self.synchronize()
        if not self.probed:
            self._probe(prompts, sampling.max_new_tokens)
        draws = all_process_attempt(
            lambda: self._draw(self._asked(prompts, group_size, sampling, rollout_number))
        )
        return draws, None

    def _probe(self, prompts: Prompts, max_new_tokens: int) -> None:
        """Compare a few greedy tokens' log-probs before the first rollout (a collective).

        A model of the same shapes can have other settings, such as another base of its rotary
        positions.

        Raises:
            VLLMError: they differ by more than a fifth of ``max_gap`` on average.
        """
        few = Prompts(
            prompts.token_ids[:PROBE_PROMPTS],
            prompts.texts[:PROBE_PROMPTS],
            {},
            prompts.index[:PROBE_PROMPTS],
        )
        tokens = min(PROBE_TOKENS, max_new_tokens)
        greedy = Sampling(temperature=0, max_new_tokens=tokens, min_new_tokens=tokens)
        draws = all_process_attempt(lambda: self._draw(self._asked(few, 1, greedy, 0)))
        gap = _mean_gap(as_rollout(self.policy, draws, greedy, self.scoring_tokens, None))
        if not gap <= self.max_gap / PROBE_SHARE:
            raise VLLMError(
                f"vLLM's log-probs of greedy tokens differ from the policy's by {gap:.3g} nats on"
                f" average (more than max_gap={self.max_gap} / {PROBE_SHARE}): it serves another"
                " model, or this one with other settings (such as rope_theta); start it with the"
                " policy's own folder, or raise max_gap if its precision explains the difference"
            )
        self.probed = True

    def _asked(
        self, prompts: Prompts, group_size: int, sampling: Sampling, rollout_number: int
    ) -> Asked:
        """Return what vLLM is asked for this data rank's prompts."""
        assert self.sampler is not None
        self._check_length(prompts, sampling, self.sampler.max_length)
        ids = [each.tolist() for each in prompts.token_ids]
        seeds = [request_seed(self.seed, rollout_number, i) for i in prompts.index.tolist()]
        requests = [self.request(sampling, group_size, seed) for seed in seeds]
        return Asked(rollout_number, group_size, ids, requests, sampling, prompts)

    def _draw(self, asked: Asked) -> Draws:
        """Draw this data rank's completions, or play its episodes."""
        assert self.sampler is not None
        if asked.prompts.environment is None:
            groups = self.sampler.generate(asked.prompt_ids, asked.requests)
            return Draws(by_row(groups, asked.group_size), asked.prompts)
        assert self.pool is not None
        driver = EpisodeDriver(self.pool, asked.prompts.environment)
        try:
            rounds = TurnRounds(self.policy, self.sampler.generate, asked, self.seed, driver)
            # The first observations are known now.
            self._check_length(rounds.prompts, asked.sampling, self.sampler.max_length)
            return rounds.run()
        except BaseException:
            driver.pool.abandon()
            raise

    def synchronize(self) -> bool:
        """Give vLLM the policy's weights if they have changed (a collective).

        Returns:
            Whether they had changed.
        """
        if self.sampler is None:
            self.sampler = all_process_attempt(self._start)
        now = fingerprint(self.policy)
        changed = self.loaded is None or not torch.equal(now, self.loaded)
        # Processes may hold different shards, so a change may show in some of them only.
        if not all_rank_max(torch.tensor(float(changed), device=now.device)):
            return False
        self.loaded = None
        self.sampler.load(merged_weights(self.policy))
        self.loaded = now
        return True

    def request(self, sampling: Sampling, group_size: int, seed: int) -> dict[str, Any]:
        """Return a prompt's request, for ``SamplingParams`` and ``/v1/completions`` alike.

        Every setting is given, since a server takes missing ones from the model's
        generation_config.json.
        """
        return {
            "n": group_size if sampling.temperature else 1,
            "seed": seed,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "min_tokens": sampling.min_new_tokens,
            "stop": list(sampling.stop),
            "skip_special_tokens": False,  # a stop string may have one
            "stop_token_ids": self.policy.eos_ids,
            "logprobs": 0,  # the drawn token's alone
            "logit_bias": self._no_tokens(),
            **NEUTRAL,
        }

    def _no_tokens(self) -> dict[int, float] | None:
        """Return a bias that multiplies the odds of ids beyond the tokenizer by e^-100.

        None unless ``vocabulary: tokenizer`` asks for it.
        """
        if self.policy.num_tokens is None:
            return None
        size = self.policy.causal_lm.config.get_text_config().vocab_size
        return dict.fromkeys(range(self.policy.num_tokens, size), BIAS) or None

    @staticmethod
    def _check_length(prompts: Prompts, sampling: Sampling, max_length: int) -> None:
        task, observed, named = prompts.environment, 0, ""
        if task is not None:
            observed = task.settings.max_observation_tokens
            named = f" and data.environment.max_observation_tokens={observed}"
        needed = max(map(len, prompts.token_ids)) + sampling.max_new_tokens + observed
        if needed > max_length:
            raise ValueError(
                f"vLLM's max_model_len={max_length} is less than the longest prompt and"
                f" sampling.max_new_tokens={sampling.max_new_tokens}{named} together, {needed}: it"
                " would cut completions; raise max_model_len"
            )

    def _check_gap(self, rollout: Rollout, sampling: Sampling) -> None:
        if sampling.temperature == 0 or sampling.top_k or sampling.top_p < 1:
            return  # vLLM's log-probs are of the truncated distribution
        gap = _mean_gap(rollout)
        if not gap <= self.max_gap:
            raise VLLMError(
                f"vLLM's log-probs differ from the policy's by {gap:.3g} nats a token on average"
                f" (max_gap={self.max_gap}): it does not sample from the policy; raise max_gap if"
                " its precision explains the difference"
            )


def _mean_gap(rollout: Rollout) -> float:
    """Return the mean |difference| of vLLM's and the policy's log-probs, nats (a collective)."""
    assert rollout.engine_logprobs is not None
    differences = (rollout.engine_logprobs - rollout.stats.logprobs).abs()
    return float(all_rank_mean_std(differences, rollout.mask)[0])
