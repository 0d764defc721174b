"""A small copy of a model's configuration: every kind of layer once, narrow, with the same scalings and rotary kinds.

``shrunken`` takes a Hugging Face configuration to one whose model has some ten thousand random
numbers, so that what this library computes can be compared with the model's own forward before any
weights are read (``rollout/self_check.py``). Widths and windows become those of ``small_sizes.py``,
and only the first layers stay: as many as it takes to have each kind of layer. Multipliers, caps
and ways to extend positions are not touched.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from rlif_lightning.model.small_sizes import narrow, overrides

DEEPEST = (
    40  # layers; where each kind of layer is not found within these, the copy is not worth its time
)
SPREAD = 0.3  # standard deviation of the random weights: large enough that a fault changes log-probs by nats
DEPTHS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_blocks",
    "decoder_layers",
    "encoder_layers",
)
DEPTHS += ("num_decoder_layers", "num_encoder_layers", "num_layers_per_stack")
OF_LAYERS = re.compile(
    r"(idxs|indices|layer_ids|only_layers|moe_layers)$"
)  # lists of layers' numbers
NUMBERS = re.compile(
    r"(idx|index|layer_id|layer_number|number|num.*layers)$"
)  # attributes that say which layer it is


class NotShrinkable(Exception):
    """There is no small copy of this configuration."""


def shrunken(config: PreTrainedConfig) -> PreTrainedConfig:
    """A small copy of a configuration that Transformers knows.

    Raises:
        NotShrinkable: no model can be built of the small copy, or no few layers have every kind.
    """
    small = copy.deepcopy(config)
    try:
        parts, text = _parts(small), small.get_text_config(decoder=True)
        text = (
            text if any(text is part for part in parts) else small
        )  # of an encoder-decoder it would be a copy
        for part in parts:
            narrow(part)
            if part is not text:
                _cut(part, vars(part).get("num_hidden_layers", 0), 2)
        _keep_every_kind(small, text)
    except NotShrinkable:
        raise
    except (
        Exception
    ) as error:  # whatever an architecture's own code raises on sizes that it was not made for
        raise NotShrinkable(f"{type(error).__name__}: {error}") from error
    return small


@torch.no_grad()
def random_model(config: PreTrainedConfig) -> Any:
    """The model of a small configuration in float32 on the CPU, with weights that depend on the configuration alone.

    The global random state stays as it was.

    Raises:
        NotShrinkable: Transformers cannot build it.
    """
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = copy.deepcopy(config)
        try:
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="eager"
            )
        except Exception as error:
            raise NotShrinkable(f"{type(error).__name__}: {error}") from error
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=SPREAD)
            else:  # a bias or a norm: those that begin as zeros or ones would hide that they are not used
                parameter += SPREAD / 3 * torch.randn_like(parameter)
    return model.eval()


def _parts(config: PreTrainedConfig) -> list[Any]:
    """The configuration and those inside it."""
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(part for each in inner for part in _parts(each))]


def _keep_every_kind(config: PreTrainedConfig, text: Any) -> None:
    """Cut the language model, in place, to the fewest layers that have every kind of layer which the whole one has."""
    shared = vars(text).get("num_kv_shared_layers") or 0
    stacks = _stacks(config, text)
    kinds = _kinds(config, stacks)
    whole = len(kinds)
    if shared:  # the last ones take the keys of those before them: as many again as it takes to have all kinds
        depth = min(2 * _prefix(kinds[: whole - shared]), whole)
        text.num_kv_shared_layers = shared if depth == whole else depth // 2
    else:
        last = (
            whole > 1 and kinds.count(kinds[-1]) == 1
        )  # of its own kind, which the last of a few will be again
        once = kinds[:-1] if last else kinds
        depth = _prefix(once) + whole - len(once)
    depth = max(depth, min(2, whole))
    if depth > DEEPEST:
        raise NotShrinkable(f"{depth} layers are needed to have every kind")
    _cut(text, whole, depth)
    if len(set(_kinds(config, stacks))) < len(set(kinds)):
        raise NotShrinkable("its first layers do not have every kind of layer")


def _shape(config: PreTrainedConfig) -> Any:
    """The model without numbers."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager")


def _stacks(config: PreTrainedConfig, text: Any) -> list[str]:
    """Paths of the model's lists of decoder layers."""
    depths = {getattr(text, name, None) for name in DEPTHS}
    lists = {
        path: len(part)
        for path, part in _shape(config).named_modules()
        if isinstance(part, nn.ModuleList)
    }
    longest = max((length for length in lists.values() if length in depths), default=0)
    if not longest:
        raise NotShrinkable("no list of layers was found")
    return [path for path, length in lists.items() if length == longest]


def _kinds(config: PreTrainedConfig, stacks: list[str]) -> list[str]:
    """The kind of every decoder layer."""
    model = _shape(config)
    layers = [model.get_submodule(path).children() for path in stacks]
    return ["\n".join(map(_kind, each)) for each in zip(*layers, strict=False)]


def _prefix(kinds: list[str]) -> int:
    """Length of the shortest beginning that has every kind of layer."""
    return max(kinds.index(kind) for kind in set(kinds)) + 1


def _kind(layer: nn.Module) -> str:
    """What tells a layer from others: its modules' classes, shapes, and the values of plain attributes."""
    lines = []
    for path, module in layer.named_modules():
        plain = {
            name: value if isinstance(value, (bool, str, int, type(None))) else type(value).__name__
            for name, value in vars(module).items()
            if not name.startswith("_") and not NUMBERS.search(name)
        }
        shapes = [tuple(parameter.shape) for parameter in module.parameters(recurse=False)]
        lines.append(f"{path} {type(module).__name__} {shapes} {sorted(plain.items())}")
    return "\n".join(lines)


def _cut(config: Any, whole: int, depth: int) -> None:
    """Keep the first layers: in place, with every list that has an entry or a number for each layer."""
    for name, value in list(vars(config).items()):
        if name in DEPTHS and type(value) is int and whole and value % whole == 0:
            vars(config)[name] = value // whole * depth  # some count each layer more than once
        elif isinstance(value, list) and OF_LAYERS.search(name):
            vars(config)[name] = [number for number in value if number < depth]
        elif isinstance(value, list) and len(value) == whole > 1:
            vars(config)[name] = value[:depth]
    own = overrides(config)
    for number in [number for number in own if number >= depth]:
        del own[number]
