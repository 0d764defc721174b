"""Windows near the number of keys: one that is short by a single key still hides that key."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlif_lightning.model.attention import TreePlan
from rlif_lightning.model.packing import Tree
from rlif_lightning.model.scores import Scores
from rlif_lightning.rollout.kv_memory import SharedPrefixMemory

CPU = torch.device("cpu")
PROMPT, OWN = 5, 4


def draw(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]


def plain(query: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    """Attention ``[heads, d]`` of a last token over the last ``window`` keys."""
    keys, values = keys[:, -window:], values[:, -window:]
    weights = (keys @ query.unsqueeze(-1)).squeeze(-1) * query.shape[-1] ** -0.5
    return (weights.softmax(-1).unsqueeze(1) @ values).squeeze(1)


@pytest.mark.parametrize("short", [-1, 0, 1, 2])
def test_decoding_hides_what_the_window_is_short_of(short):
    """In the last step there are PROMPT + OWN keys, and ``short`` of them are too far."""
    scores = Scores(window=PROMPT + OWN - short)
    memory = SharedPrefixMemory(2, 1, PROMPT, OWN, CPU)
    memory.add_prompts([0], [PROMPT])
    memory.add_rows([0, 1], [0, 0])
    prompt, own = draw(1, 2, PROMPT, 3), draw(2, 2, OWN, 3)
    TreePlan([Tree(0, PROMPT)], CPU, memory.keep_prompts).attend(0, *prompt, scores)
    for step in range(OWN):
        memory.prepare()
        memory.start_step()
        new = [x[:, :, step : step + 1] for x in own]
        output = memory.attend(0, *new, scores)[:, 0]
        memory.end_step()
        for row in range(2):
            keys, values = (
                torch.cat([prompt[i][0], own[i][row, :, : step + 1]], 1) for i in (1, 2)
            )
            expected = plain(own[0][row, :, step], keys, values, PROMPT + OWN - short)
            torch.testing.assert_close(output[row], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("window", range(1, PROMPT + OWN + 2))
def test_packed_tokens_see_as_many_keys_as_the_window_has(window):
    """A prompt and a completion in one line, each token against its last ``window`` keys."""
    tokens = PROMPT + OWN
    query, key, value = draw(1, 2, tokens, 3)
    plan = TreePlan([Tree(0, PROMPT, (OWN,))], CPU)
    output = plan.attend(0, query, key, value, Scores(window=window))[0]
    for t in range(tokens):
        seen = key[0, :, : t + 1], value[0, :, : t + 1]
        torch.testing.assert_close(
            output[t], plain(query[0, :, t], *seen, window), rtol=1e-9, atol=1e-9
        )
