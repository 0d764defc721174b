"""Shared prompts in decoding: against plain attention over each row's own concatenated keys, rows
coming and going.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import rlif_lightning.model.attention as attention
import rlif_lightning.rollout.kv_memory as kv_memory
from rlif_lightning.model.attention import TreePlan
from rlif_lightning.model.packing import Tree
from rlif_lightning.model.scores import Scores
from rlif_lightning.rollout.kv_memory import SharedPrefixMemory
from rlif_lightning.rollout.places import close_gaps

CPU = torch.device("cpu")
SIZE, VALUE_SIZE, LAYERS, MAX_PROMPT, MAX_OWN = 3, 5, 2, 6, 12
WINDOWS = (None, 4)  # of the two layers


@dataclass
class Row:
    """One row's whole history: keys and values ``[tokens, heads, d]`` of each layer."""

    prompt_length: int
    keys: list[Tensor]
    values: list[Tensor]
    number: int = 0


@dataclass
class World:
    """The memory under test beside plain rows that share nothing."""

    heads: int
    key_heads: int
    group_size: int
    memory: SharedPrefixMemory
    generator: torch.Generator
    rows: list[Row] = field(default_factory=list)
    admitted: int = 0
    blocks_alone: bool = False  # each prompt of a prefill in a block of its own
    softcap: float | None = None
    sinks: Tensor | None = None

    def draw(self, rows: int, tokens: int) -> list[Tensor]:
        """Query, key and value ``[rows, heads, tokens, d]``; values are wider than keys."""
        sizes = [(self.heads, SIZE), (self.key_heads, SIZE), (self.key_heads, VALUE_SIZE)]
        shapes = [(rows, heads, tokens, size) for heads, size in sizes]
        return [
            torch.randn(shape, generator=self.generator, dtype=torch.float64) for shape in shapes
        ]

    def admit(self, lengths: list[int]) -> None:
        """Prompts come through the prefill's plan, as in the engine."""
        starts = [sum(lengths[:k]) for k in range(len(lengths))]
        numbers = [self.admitted // self.group_size + k for k in range(len(lengths))]
        self.memory.add_prompts(numbers, lengths)
        owners = [number for number in numbers for _ in range(self.group_size)]
        self.memory.add_rows(range(len(self.rows), len(self.rows) + len(owners)), owners)
        with pytest.MonkeyPatch.context() as patch:
            if self.blocks_alone:
                patch.setattr(attention, "SMALL", 0)
                patch.setattr(attention, "WASTE", 0.0)
            plan = TreePlan(
                [Tree(s, n) for s, n in zip(starts, lengths, strict=True)],
                CPU,
                self.memory.keep_prompts,
            )
        per_layer = []
        for layer in range(LAYERS):
            query, key, value = self.draw(1, sum(lengths))
            plan.attend(
                layer, query, key, value, Scores(None, WINDOWS[layer], self.softcap, self.sinks)
            )
            per_layer.append((key[0].transpose(0, 1), value[0].transpose(0, 1)))
        for start, length in zip(starts, lengths, strict=True):
            for _ in range(self.group_size):
                keys, values = ([x[i][start : start + length] for x in per_layer] for i in (0, 1))
                self.rows.append(Row(length, keys, values, self.admitted))
                self.admitted += 1

    def step(self, scaling: float | None) -> None:
        n = len(self.rows)
        self.memory.prepare()
        positions = self.memory.start_step()
        assert positions.tolist() == [[len(row.keys[0])] for row in self.rows]
        for layer in range(LAYERS):
            query, key, value = self.draw(n, 1)
            for row, k, v in zip(self.rows, key, value, strict=True):
                row.keys[layer] = torch.cat([row.keys[layer], k.transpose(0, 1)])
                row.values[layer] = torch.cat([row.values[layer], v.transpose(0, 1)])
            output = self.memory.attend(
                layer, query, key, value, Scores(scaling, WINDOWS[layer], self.softcap, self.sinks)
            )
            assert output.shape == (n, 1, self.heads, VALUE_SIZE)
            for b, row in enumerate(self.rows):
                expected = self.plain(
                    query[b, :, 0], row.keys[layer], row.values[layer], scaling, WINDOWS[layer]
                )
                torch.testing.assert_close(output[b, 0], expected, rtol=1e-9, atol=1e-9)
        self.memory.end_step()

    def plain(
        self, query: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        if window is not None:
            keys, values = keys[-window:], values[-window:]
        repeats = self.heads // self.key_heads
        heads = []
        for head in range(self.heads):
            scores = (
                keys[:, head // repeats]
                @ query[head]
                * (SIZE**-0.5 if scaling is None else scaling)
            )
            if self.softcap is not None:
                scores = self.softcap * (scores / self.softcap).tanh()
            total = scores.exp().sum() + (0 if self.sinks is None else self.sinks[head].exp())
            heads.append(scores.exp() / total @ values[:, head // repeats])
        return torch.stack(heads)

    def leave(self, stays: list[bool]) -> None:
        arrangement = close_gaps(torch.tensor(stays), True, CPU)
        self.memory.arrange(arrangement, None)
        self.rows = [self.rows[place] for place in arrangement.source.tolist()]


def test_several_tokens_at_once_are_as_many_steps(monkeypatch):
    """What an environment adds to rows: three tokens in one pass attend as they do one after the
    other.
    """
    monkeypatch.setattr(kv_memory, "FIRST_ROOM", 2)
    outputs = []
    for tokens in (1, 3):
        one = world(seed=5)
        one.admit([3, 6])
        one.step(None)
        drawn = [one.draw(len(one.rows), 6) for _ in range(LAYERS)]
        found = []
        for start in range(0, 6, tokens):
            one.memory.prepare(tokens)
            places = one.memory.start_step()
            expected = [[3 + 1 + start + k for k in range(tokens)]] * 2 + [
                [6 + 1 + start + k for k in range(tokens)]
            ] * 2
            assert places.tolist() == expected
            part = [[x[:, :, start : start + tokens] for x in layer] for layer in drawn]
            found.append(
                torch.stack(
                    [
                        one.memory.attend(n, *part[n], Scores(window=WINDOWS[n]))
                        for n in range(LAYERS)
                    ]
                )
            )
            one.memory.end_step()
        outputs.append(torch.cat(found, 2))
    assert outputs[0].shape == (LAYERS, 4, 6, 4, VALUE_SIZE)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)


def world(heads=4, key_heads=2, group_size=2, max_groups=4, seed=0) -> World:
    memory = SharedPrefixMemory(max_groups * group_size, max_groups, MAX_PROMPT, MAX_OWN, CPU)
    return World(heads, key_heads, group_size, memory, torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=20)
@given(
    data=st.data(),
    key_heads=st.sampled_from([1, 2, 4]),
    group_size=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_schedule_is_plain_attention_of_each_row(data, key_heads, group_size, seed):
    """Random admissions, steps and departures, with own room of 2 tokens at first: it has to grow
    twice and more.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_memory, "FIRST_ROOM", 2)
        one = world(4, key_heads, group_size, seed=seed)
    one.blocks_alone = data.draw(st.booleans())
    scaling = data.draw(st.sampled_from([None, 0.6]))
    one.softcap = data.draw(st.sampled_from([None, 0.8]))
    one.sinks = data.draw(
        st.sampled_from([None, torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)])
    )
    for _ in range(data.draw(st.integers(3, 12))):
        groups = one.memory.prompts.used
        assert one.memory.rows.used == len(one.rows)
        assert groups == len({row.number // group_size for row in one.rows})
        room = (one.memory.max_rows - len(one.rows)) // group_size
        if room and (not one.rows or data.draw(st.booleans())):
            one.admit(data.draw(st.lists(st.integers(1, MAX_PROMPT), min_size=1, max_size=room)))
        for _ in range(data.draw(st.integers(1, 3))):
            if all(len(row.keys[0]) - row.prompt_length < MAX_OWN for row in one.rows):
                one.step(scaling)
        full = [len(row.keys[0]) - row.prompt_length == MAX_OWN for row in one.rows]
        stays = [not f and data.draw(st.integers(0, 3)) > 0 for f in full]
        if not all(stays):
            one.leave(stays)


def test_room_doubles_up_to_the_longest_completion(monkeypatch):
    monkeypatch.setattr(kv_memory, "FIRST_ROOM", 2)
    one = world()
    one.admit([3, 5])
    rooms = []
    for _ in range(MAX_OWN):
        one.step(None)
        rooms.append(one.memory.layers[1].own.shape[2])
    assert rooms == [2, 2, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12]


def test_a_prompt_goes_with_its_last_row():
    one = world(max_groups=3)
    one.admit([3, 5, 2])
    one.step(None)
    one.leave([True, False, False, True, True, True])
    assert one.memory.prompts.used == 3
    one.leave(
        [
            slot != one.rows.index(next(r for r in one.rows if r.prompt_length == 3))
            for slot in range(4)
        ]
    )
    assert one.memory.prompts.used == 2
    one.admit([6])  # takes the place that is free
    one.step(None)
    one.leave([False] * len(one.rows))
    assert (one.memory.prompts.used, one.memory.rows.used) == (0, 0)
    one.admit([1, 1, 1])
    one.step(None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_precisions_are_kept(dtype):
    memory = SharedPrefixMemory(2, 1, 3, 4, CPU)
    memory.add_prompts([0], [3])
    memory.add_rows([0, 1], [0, 0])
    query, key, value = (torch.randn(1, h, 3, 4, dtype=dtype) for h in (4, 2, 2))
    TreePlan([Tree(0, 3)], CPU, memory.keep_prompts).attend(0, query, key, value, Scores())
    memory.prepare()
    memory.start_step()
    output = memory.attend(
        0, *(x[..., :1, :].expand(2, -1, -1, -1) for x in (query, key, value)), Scores()
    )
    assert output.dtype == memory.layers[0].own.dtype == memory.layers[0].prompts.dtype == dtype


@given(st.lists(st.booleans(), max_size=12))
def test_the_last_ones_close_the_gaps(stays):
    source = close_gaps(torch.tensor(stays, dtype=torch.bool), True, CPU).source.tolist()
    assert sorted(source) == [place for place, stay in enumerate(stays) if stay]
    for hole, mover in enumerate(source):
        assert mover == hole or (
            not stays[hole] and mover >= len(source)
        )  # who moves must, and takes a gap
