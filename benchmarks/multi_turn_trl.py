"""TRL in ``benchmarks/multi_turn.py``: the tool loop of ``GRPOTrainer`` with an environment.

Run it in an environment of its own that has trl installed.

    python benchmarks/multi_turn_trl.py

What is measured is ``GRPOTrainer._generate``: prompts to ids, generation, tools, generation again.
Rewards, reference and update are no part of it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import multi_turn_work as work
from workload import Meter

RESPONSE = {  # how TRL finds calls; as its own templates, in this chat's words
    "defaults": {"role": "assistant"},
    "start_anchor": "<start> assistant",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<eos>\s*", "content": "text"},
    },
}


def plan_turns(model: Any, plan: list[list[int]]) -> dict[str, int]:
    """Have the model's generation end turns where the plan says; return the number of the turn."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    now = {"turn": 0}
    specials = torch.arange(work.FIRST_WORD)

    class Planned(LogitsProcessor):
        def __init__(self, start: int):
            turn = now["turn"]
            rows = [turns for turns in plan if len(turns) > turn]
            self.start, self.length = start, torch.tensor([turns[turn] for turns in rows])
            self.is_last = torch.tensor([len(turns) == turn + 1 for turns in rows])

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            left = self.length - (input_ids.shape[1] - self.start)
            scores[:, specials] = -torch.inf
            calls, ends = (left == 2) & ~self.is_last, left <= 1
            scores[calls | ends] = -torch.inf
            scores[calls, work.CALL_ID] = 0.0
            scores[ends, work.END] = 0.0
            return scores

    generate = model.generate

    def planned(*arguments: Any, **named: Any) -> Any:
        planning = LogitsProcessorList([Planned(named["input_ids"].shape[1])])
        found = generate(*arguments, logits_processor=planning, **named)
        now["turn"] += 1
        return found

    model.generate = planned
    return now


def build(a: argparse.Namespace, folder: Path) -> tuple[Any, dict[str, int]]:
    """Return the trainer, and the number of the turn that its model draws."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    plan, episodes = work.plan(a), a.problems * a.group_size
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.response_template = RESPONSE
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    now = plan_turns(model, plan)
    settings = GRPOConfig(
        output_dir=str(folder / "out"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        seed=a.seed,
        per_device_train_batch_size=episodes,
        num_generations=a.group_size,
        max_completion_length=max(map(sum, plan)) + max(map(len, plan)) * (a.observation + 8),
        temperature=1.0,
        beta=0.0,
        max_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(rows(a)),
        processing_class=tokenizer,
        reward_funcs=[],
        environment_factory=work.Scenery,
    )
    return trainer, now


def rows(a: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the problems with TRL's column of messages."""
    return [
        {**row, "prompt": [{"role": "user", "content": row["question"]}]}
        for row in work.problems(a)
    ]


def main() -> None:
    """Draw the rollouts and print one line of JSON."""
    a = work.read_flags(__doc__ or "")
    import torch

    torch.set_num_threads(1)
    import transformers
    import trl

    meter, done = Meter(), {}
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        work.save_model(a, Path(name))
        trainer, now = build(a, Path(name))
        generate = trainer._generate

        def measured(prompts: Any) -> Any:
            now["turn"] = 0
            meter.begin_step()
            found = generate(prompts)
            drawn = [sum(mask) for mask in found[2]]
            meter.end_step(sum(drawn))
            done["turns"] = sum(
                message["role"] == "assistant" for messages in found[3] for message in messages
            )
            done["sampled"] = sum(drawn)
            done["observed"] = sum(map(len, found[2])) - sum(drawn)
            return found

        trainer._generate = measured
        inputs = [row for row in rows(a) for _ in range(a.group_size)]
        trainer.model.train()
        meter.start()
        for _ in range(1 + a.rollouts):
            trainer._generate_and_score_completions(inputs)
    versions = {name: each.__version__ for name, each in
                {"trl": trl, "transformers": transformers, "torch": torch}.items()}  # fmt: skip
    work.report(meter, "trl", versions, done)


if __name__ == "__main__":
    main()
