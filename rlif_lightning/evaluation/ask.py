"""``rlif generate PLACE PROMPT ...`` and ``rlif chat PLACE``: ask a trained policy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlif_lightning.records import RewardOutput, Rollout
from rlif_lightning.rewards.base import RewardHead
from rlif_lightning.rewards.internal import MeanLogprob
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.running.checkpoint_faults import read_rest
from rlif_lightning.running.checkpoint_names import BEST, VERSION, find_checkpoints
from rlif_lightning.running.quiet import silence
from rlif_lightning.running.run_settings import KEY

COMMANDS = ("generate", "chat")
ENDS = ("", "exit", "quit")  # lines that end a chat


def command(words: Sequence[str], module_class: Any) -> int:
    """Run one of the two commands and return the exit code: 0, or 2 after a mistake.

    Args:
        words: of the command line, from the command on.
        module_class: ``RLIFModule``.
    """
    args = _parser().parse_args(words)
    silence()
    try:
        if args.command == "chat" and (args.prompts or args.samples != 1):
            raise ValueError(
                "a chat reads lines of standard input, and answers each once: leave the prompts and"
                " --samples out, or use rlif generate"
            )
        if args.command == "generate" and (not args.prompts or args.samples < 1):
            raise ValueError(
                f"generate {args.place}: {len(args.prompts)} prompts, --samples={args.samples}:"
                " give one prompt at least, and one sample"
            )
        module = load(args.place, module_class)
        given = {"temperature": args.temperature, "max_new_tokens": args.max_new_tokens}
        known = {name: value for name, value in given.items() if value is not None}
        sampling = replace(module.sampling, **known)
        if args.command == "chat":
            return chat(module, sampling)
        for prompt, texts in zip(
            args.prompts, module.generate(args.prompts, args.samples, sampling), strict=True
        ):
            for text in texts:
                print(text if len(args.prompts) == len(texts) == 1 else f"{prompt}{text}")
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def load(place: str, module_class: Any) -> Any:
    """Return a module with the policy of a run, a checkpoint, a model folder or a hub name.

    Args:
        place: a run's root or ``version_N`` (its newest checkpoint), a checkpoint, the folder of a
            Hugging Face model such as one of HFExporter's, or a name.
        module_class: ``RLIFModule``.

    Raises:
        ValueError: a folder without a checkpoint and without a model.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return _policy_of(path, module_class)
    models = ("config.json", "adapter_config.json")
    if not path.is_dir() or any((path / name).is_file() for name in models):
        return module_class(place, {"unused": MeanLogprob()})
    found = find_checkpoints(path)
    if VERSION.fullmatch(path.name):
        found = [each for each in found if path in each.parents]
    best = path / "checkpoints" / BEST
    found = [each for each in [*found, best] if each.exists()]
    if not found:
        raise ValueError(
            f"{place} has neither checkpoints nor a model's config.json; name a run, a checkpoint,"
            " or a model's folder"
        )
    print(f"policy of {found[0]}", file=sys.stderr)
    return _policy_of(found[0], module_class)


class _Unused(RewardHead):
    """Stands for a reward of the run, which nobody asks here, so that its settings do nothing."""

    def forward(self, rollout: Rollout) -> RewardOutput:
        raise AssertionError("a module that is asked for texts scores nothing")

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Leave the state of the reward in the checkpoint."""


def _policy_of(path: Path, module_class: Any) -> Any:
    """Return a checkpoint's module, sampled by the native engine; its rewards are not built."""
    settings = read_rest(path).get(KEY) or {}
    unused = {name: _Unused() for name in settings.get("model.rewards", ["unused"])}
    return module_class.load_from_checkpoint(path, rewards=unused, engine=NativeEngine())


def chat(module: Any, sampling: Any) -> int:
    """Answer lines of standard input until an empty one; with a chat template, as a conversation.

    Args:
        module: whose policy answers.
        sampling: how answers are drawn.
    """
    module.configure_model()
    talks = module.policy.tokenizer.chat_template is not None
    turns: list[dict[str, str]] = []
    if not talks:
        print("this tokenizer has no chat template: each line is a prompt", file=sys.stderr)
    while True:
        print("> ", end="", flush=True)
        line = sys.stdin.readline().rstrip("\n")
        if line in ENDS:
            return 0
        turns.append({"role": "user", "content": line})
        [[text]] = module.generate(turns if talks else line, 1, sampling)
        turns.append({"role": "assistant", "content": text})
        print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rlif", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("place", help="a run, a checkpoint, a model's folder or its name")
    parser.add_argument("prompts", nargs="*", help="of generate: texts as the model reads them")
    parser.add_argument("--samples", type=int, default=1, help="completions of each prompt")
    parser.add_argument("--temperature", type=float, help="0 = greedy; absent: as in training")
    parser.add_argument("--max_new_tokens", type=int, help="absent: as in training")
    return parser
