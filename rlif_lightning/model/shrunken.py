"""Small copies of model configurations, with every kind of layer.

``shrunken`` turns a Hugging Face configuration into one whose model has some ten thousand random
weights. Before any real weights are read, ``rollout/self_check.py`` compares on it what this
library computes with the model's own forward. Widths and windows become those of
``small_sizes.py``. Only the first layers stay, as few as have each kind of layer. Multipliers, caps
and ways to extend positions stay as they are.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from rlif_lightning.model.small_sizes import narrow, overrides

# Most layers of a copy. A deeper one would not be worth its time.
DEEPEST = 40
# Standard deviation of the random weights: large enough that a fault changes log-probs by nats.
SPREAD = 0.3
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
# Names of lists of layer numbers.
OF_LAYERS = re.compile(r"(idxs|indices|layer_ids|only_layers|moe_layers)$")
# Names of attributes that hold a layer's number.
NUMBERS = re.compile(r"(idx|index|layer_id|layer_number|number|num.*layers)$")


class NotShrinkable(Exception):
    """A configuration without a small copy."""


def shrunken(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a small copy of a configuration that Transformers knows.

    Raises:
        NotShrinkable: no model can be built from the small copy, or a few layers do not have every
            kind.
    """
    small = copy.deepcopy(config)
    try:
        parts, text = _parts(small), small.get_text_config(decoder=True)
        if not any(text is part for part in parts):
            text = small  # an encoder-decoder returns a copy of its decoder's part
        for part in parts:
            narrow(part)
            if part is not text:
                _cut(part, vars(part).get("num_hidden_layers", 0), 2)
        _keep_every_kind(small, text)
    except NotShrinkable:
        raise
    except Exception as error:  # an architecture's own code may raise anything on small sizes
        raise NotShrinkable(f"{type(error).__name__}: {error}") from error
    return small


@torch.no_grad()
def random_model(config: PreTrainedConfig) -> Any:
    """Build the model of a small configuration in float32 on the CPU.

    Its weights depend on the configuration alone. The global random state stays as it was.

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
            else:
                # A bias of zeros or a norm of ones would hide that it is not used.
                parameter += SPREAD / 3 * torch.randn_like(parameter)
    return model.eval()


def _parts(config: PreTrainedConfig) -> list[Any]:
    """Return the configuration and those inside it."""
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(part for each in inner for part in _parts(each))]


def _keep_every_kind(config: PreTrainedConfig, text: Any) -> None:
    """Cut the language model, in place, to the fewest layers that have every kind of layer."""
    shared = vars(text).get("num_kv_shared_layers") or 0
    stacks = _stacks(config, text)
    kinds = _kinds(config, stacks)
    whole = len(kinds)
    if shared:
        # The last layers use the keys of those before them, so each kind is needed in both halves.
        depth = min(2 * _prefix(kinds[: whole - shared]), whole)
        text.num_kv_shared_layers = shared if depth == whole else depth // 2
    else:
        # A last layer of a kind of its own will be of that kind in the small copy as well.
        last = whole > 1 and kinds.count(kinds[-1]) == 1
        once = kinds[:-1] if last else kinds
        depth = _prefix(once) + whole - len(once)
    depth = max(depth, min(2, whole))
    if depth > DEEPEST:
        raise NotShrinkable(f"{depth} layers are needed to have every kind")
    _cut(text, whole, depth)
    if len(set(_kinds(config, stacks))) < len(set(kinds)):
        raise NotShrinkable("its first layers do not have every kind of layer")


def _shape(config: PreTrainedConfig) -> Any:
    """Return the model on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager")


def _stacks(config: PreTrainedConfig, text: Any) -> list[str]:
    """Return the paths of the model's lists of decoder layers."""
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
    """Return the kind of every decoder layer."""
    model = _shape(config)
    layers = [model.get_submodule(path).children() for path in stacks]
    return ["\n".join(map(_kind, each)) for each in zip(*layers, strict=False)]


def _prefix(kinds: list[str]) -> int:
    """Return the length of the shortest prefix that has every kind of layer."""
    return max(kinds.index(kind) for kind in set(kinds)) + 1


def _kind(layer: nn.Module) -> str:
    """Return the kind of a layer: its modules' classes, shapes and values of plain attributes."""
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
    """Keep the first layers, in place, also in lists of one entry for each layer."""
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
