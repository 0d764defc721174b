"""The arithmetic of a run's memory against real tensors of small models, and the page against
scripts/memory_table.py.
"""

from __future__ import annotations

import contextlib
import gc
from functools import partial
from pathlib import Path
from typing import Any

import memory_table as memory
import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rlif_lightning.evaluation.memory_need import state
from rlif_lightning.learning.optimizer import build_optimizer
from rlif_lightning.model import memory_counts as counts
from rlif_lightning.model.loading import LoRA, Policy, prepare_model
from rlif_lightning.model.packing import Packed, pack
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Completions, Prompts
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.sampling import Sampling

ROOT = Path(__file__).resolve().parent.parent
Shape, Line, Run = counts.Shape, counts.Line, memory.Run

SHAPES = {
    "qwen2": Shape(256, 1024, 4, 8, 2, 32, 512),
    "untied": Shape(192, 256, 6, 6, 1, 32, 1000, tied=False),
    "qwen3": Shape(128, 512, 3, 4, 4, 48, 300, biases=False, head_norms=True),
}
LINES = {"qwen2": Line(64, 4, 128), "untied": Line(16, 2, 300), "qwen3": Line(200, 3, 60)}
ONE_SHAPE = [  # the formula that all three of them have, where the model is larger
    pytest.param(kind, marks=() if kind == "qwen3" else pytest.mark.full) for kind in SHAPES
]
# Of what is kept without recomputation; indices and token statistics are left out.
CLOSE = 0.005
RECOMPUTED = 0.02  # with it; the same counts for more there


def policy_of(
    kind: str,
    recomputed: bool = False,
    lora: LoRA | None = None,
    dtype: torch.dtype = torch.float32,
) -> PolicyModel:
    """A random model of a shape."""
    shape = SHAPES[kind]
    sizes = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "tie_word_embeddings": shape.tied,
    }
    if shape.head_norms:
        model = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=shape.head_dim))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
    settings = Policy("rlif-arithmetic", gradient_checkpointing=recomputed, lora=lora)
    return PolicyModel(settings, load=lambda each: prepare_model(model.to(dtype), each))


def held_of(shape: Shape, run: Run) -> dict[str, int]:
    """What a process keeps of a model in a run of the table."""
    return state(shape, run.held(shape), run.layout)


def packed(line: Line) -> Packed:
    ids = torch.randint(0, 100, (line.completions, line.length))
    prompts = [torch.randint(0, 100, (line.prompt,)) for _ in range(line.prompts)]
    whole = torch.ones_like(ids, dtype=torch.bool)
    group = line.completions // line.prompts
    return next(pack(Completions(prompts, ids, whole, group), 10**6))


def storages(tensors: list[Tensor]) -> int:
    """Bytes of memory behind tensors, what they share once."""
    found = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(found.values())


@pytest.mark.parametrize("kind", ONE_SHAPE)
def test_weights_gradients_and_moments_are_counted_to_the_byte(kind):
    policy, held = policy_of(kind), held_of(SHAPES[kind], Run("one", reference=False))
    trained = list(policy.parameters())
    policy(packed(LINES[kind]), Sampling()).logprobs.sum().backward()
    optimizer = build_optimizer(partial(torch.optim.AdamW, lr=1e-6), trained)
    optimizer.step()
    assert storages([parameter.data for parameter in trained]) == held["weights"]
    assert storages([parameter.grad for parameter in trained]) == held["gradients"]
    moments = [
        each for entry in optimizer.state.values() for each in entry.values() if each.dim() > 0
    ]
    assert storages(moments) == held["moments"]
    assert held["moments"] == 2 * held["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_adapters_are_counted_to_the_byte(kind):
    policy = policy_of(kind, lora=LoRA(rank=4))
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == SHAPES[kind].adapters(4)
    assert held_of(SHAPES[kind], Run("one", rank=4))["gradients"] == 4 * SHAPES[kind].adapters(4)


def kept_by_autograd(policy: PolicyModel, line: Line, mixed: bool) -> int:
    """Bytes of all tensors that a forward pass saves for its backward pass, parameters left out."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    saved: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in parameters:
            saved.append(value)
        return value

    # As Lightning's plugin: without a cache of cast weights.
    half = (
        torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
        if mixed
        else contextlib.nullcontext()
    )
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), half:
        stats = policy(packed(line), Sampling())
    del stats
    return storages(saved)


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bf16-mixed"])
@pytest.mark.parametrize("kind", SHAPES)
def test_what_autograd_keeps_is_counted(kind, mixed):
    shape, line = SHAPES[kind], LINES[kind]
    counted = counts.kept(shape, line, mixed, recomputed=False) + counts.head_kept(
        shape, line, mixed
    )
    # The CPU's kernel keeps a mask, one for all layers; CUDA's needs none.
    mask = (line.length - 1) * (line.prompt + line.length - 1) * (2 if mixed else 4)
    assert kept_by_autograd(policy_of(kind), line, mixed) == pytest.approx(
        counted + mask, rel=CLOSE
    )


@pytest.mark.parametrize("kind", ONE_SHAPE)
def test_several_groups_in_a_micro_batch_keep_no_more(kind):
    """Where trees share a block, the line's own queries, keys and values need not be kept."""
    shape, line = SHAPES[kind], Line(40, 6, 50, 2)
    counted = counts.kept(shape, line, False, recomputed=False)
    counted += counts.head_kept(shape, line, False)
    found = kept_by_autograd(policy_of(kind), line, False)
    assert 0.9 * counted < found < (1 + CLOSE) * counted


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bf16-mixed"])
@pytest.mark.parametrize("kind", ONE_SHAPE)
def test_with_recomputation_the_layers_inputs_are_kept(kind, mixed):
    """Before the backward pass; in it one layer's more, which the table counts."""
    shape, line = SHAPES[kind], LINES[kind]
    counted = counts.kept(shape, line, mixed, recomputed=True) + counts.head_kept(
        shape, line, mixed
    )
    counted -= (
        counts.layer_kept(shape, line, mixed) + 8 * line.tokens * shape.head_dim
    )  # angles: arguments, not saved
    assert kept_by_autograd(policy_of(kind, recomputed=True), line, mixed) == pytest.approx(
        counted, rel=RECOMPUTED
    )


# The mark: recomputed layers are counted above.
@pytest.mark.parametrize("recomputed", [False, pytest.param(True, marks=pytest.mark.full)])
def test_adapters_on_bfloat16_weights_keep_no_more(recomputed):
    """What the table counts for them is that of full fine-tuning, an upper bound."""
    shape, line = SHAPES["qwen2"], LINES["qwen2"]
    policy = policy_of("qwen2", recomputed, LoRA(rank=4), torch.bfloat16)
    counted = counts.kept(shape, line, True, recomputed) + counts.head_kept(shape, line, True)
    counted -= counts.layer_kept(shape, line, True) * recomputed
    assert 0.4 * counted < kept_by_autograd(policy, line, mixed=True) < counted


def memories() -> list[Any]:
    """All memory of keys and values in this process, by layers."""
    return [each for each in gc.get_objects() if type(each).__name__ == "LayerMemory"]


class Watched(NativeEngine):
    """Looks at the memory of keys and values after 80 tokens, when the room for rows' own has grown
    to its end. What was there before is not counted.
    """

    found = calls = 0

    def setup(self, policy: PolicyModel, seed: int) -> None:
        super().setup(policy, seed)
        self.others = memories()  # kept, so that no other object gets the place of one

    def ends(self, *given: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 80:
            before = {id(each) for each in self.others}
            layers = [each for each in memories() if id(each) not in before]
            tensors = [
                value
                for each in layers
                for value in vars(each).values()
                if isinstance(value, Tensor)
            ]
            self.found = storages(tensors)
        return super().ends(*given) & False


@pytest.mark.slow
@pytest.mark.parametrize("kind", ONE_SHAPE)
def test_keys_and_values_are_counted_to_the_byte(kind):
    engine, rows, own = Watched(max_rows=12), 12, 90
    engine.setup(policy_of(kind), 0)
    prompts = Prompts([torch.arange(10, 30)] * 3, [""] * 3, {}, torch.arange(3))
    engine.generate(prompts, 4, Sampling(max_new_tokens=own + 1), 0)
    assert engine.found == counts.cache(SHAPES[kind], rows, 3, 20, own, size=4)


# Parameters as the models' cards have them: https://huggingface.co/Qwen, safetensors' own count, a
# tied head once.
PUBLISHED = {"Qwen2.5-1.5B": 1543714304, "Qwen2.5-3B": 3085938688, "Qwen2.5-7B": 7615616512}
PUBLISHED["Qwen3-1.7B-Base"] = 1720574976


def test_the_shapes_have_the_published_numbers_of_parameters():
    assert {name: shape.parameters for name, shape in memory.MODELS.items()} == PUBLISHED


def test_a_row_by_hand():
    """Qwen2.5-7B under fsdp2.yaml on four: 16 bytes a parameter divided, whole gradients of 4
    beside it.
    """
    held = held_of(memory.MODELS["Qwen2.5-7B"], Run("four", 4, "fsdp2"))
    number = PUBLISHED["Qwen2.5-7B"]
    assert held == {
        "weights": number,
        "gradients": 4 * number,
        "moments": 2 * number,
        "frozen": number,
    }
    assert held_of(memory.MODELS["Qwen2.5-7B"], Run("four", 4, "ddp"))["gradients"] == 8 * number
    # 28 layers x 2 (keys, values) x 4 heads x 128 x 2 bytes = 57,344 bytes a token; 64 rows of
    # 3,071, 10 prompts.
    assert counts.cache(memory.MODELS["Qwen2.5-7B"], 64, 10, 256, 3071) == 57344 * (
        64 * 3071 + 10 * 256
    )


def test_the_page_has_the_scripts_table():
    page = memory.PAGE.read_text()
    assert page.split(memory.BEGIN)[1].split(memory.END)[0].strip() == memory.table(), (
        "scripts/memory_table.py --write"
    )


def test_the_paper_configs_page_has_the_scripts_peaks():
    page = (ROOT / "configs" / "paper" / "README.md").read_text()

    def peak(model: str, *settings: object, **named: object) -> str:
        found = memory.peaks(memory.MODELS[model], Run("", *settings, **named))
        return f"{max(found['update'], found['rollout']) / memory.GIB:.1f}"

    for model in ("Qwen2.5-1.5B", "Qwen3-1.7B-Base", "Qwen2.5-3B"):
        assert f"| {peak(model, vllm=True)} (native engine: {peak(model)}) |" in page
    assert f"| {peak('Qwen2.5-7B', 7, 'fsdp2')} on each of seven |" in page
    assert (
        f"({peak('Qwen2.5-7B', 3, 'reshard')} GiB instead of {peak('Qwen2.5-7B', 3, 'fsdp2')})"
        in page
    )
