"""The peer: TRL's ``GRPOTrainer`` on the same workload.

Run it in an environment of its own that has trl installed.

    python benchmarks/trl_step.py --lengths random

TRL passes no logits to a reward function. So with ``--rewards rlif`` self-certainty costs one more
forward pass over prompts and completions, as in the code that a user of TRL would write. TRL's own
defaults switch gradient checkpointing and bfloat16 on; here the workload decides.
"""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import workload
from workload import Meter


def make_rewards(a: Any, get_model: Any, tokenizer: Any) -> list[Any]:
    """Return TRL reward functions: two plain ones, or self-certainty and the vote."""
    if a.rewards == "python":

        def distinct(completion_ids: Any, **_: Any) -> list[float]:
            return [workload.distinct_share(ids) for ids in completion_ids]

        def even(completion_ids: Any, **_: Any) -> list[float]:
            return [workload.even_share(ids) for ids in completion_ids]

        return [distinct, even]

    def certainty(prompts: Any, completion_ids: Any, **_: Any) -> list[float]:
        return self_certainty(
            get_model(), tokenizer, prompts, completion_ids, a.micro_batch or a.group_size
        )

    def vote(completion_ids: Any, **_: Any) -> list[float]:
        return workload.vote_scores(completion_ids, a.group_size)

    return [certainty, vote]


def self_certainty(
    model: Any, tokenizer: Any, prompts: Any, completion_ids: Any, at_once: int
) -> list[float]:
    """Compute the mean over tokens of KL(uniform || model), by a pass over padded rows."""
    import torch

    prompt_ids = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    training, scores = model.training, []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(prompts), at_once):
            part = slice(start, start + at_once)
            rows = [
                torch.tensor(p + c)
                for p, c in zip(prompt_ids[part], completion_ids[part], strict=True)
            ]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            real = torch.nn.utils.rnn.pad_sequence(
                [torch.ones_like(row) for row in rows], batch_first=True
            )
            logits = model(input_ids=ids, attention_mask=real, use_cache=False).logits
            for i, row in enumerate(rows):
                z = logits[i, len(prompt_ids[start + i]) - 1 : len(row) - 1].float()
                scores.append(float((z.logsumexp(-1) - z.mean(-1)).mean()) - math.log(z.shape[-1]))
    model.train(training)
    return scores


def force_lengths(a: Any, model: Any, tokenizer: Any, counts: dict[str, int]) -> None:
    """Forbid end-of-sequence before each row's planned length and force it there."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    class Planned(LogitsProcessor):
        def __init__(self, lengths: list[int], start: int):
            self.last, self.start = torch.tensor(lengths) - 1, start

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            done = (input_ids.shape[1] - self.start) >= self.last
            scores[:, tokenizer.eos_token_id] = -math.inf
            scores[done] = -math.inf
            scores[done, tokenizer.eos_token_id] = 0.0
            return scores

    generate = model.generate

    def planned(*args: Any, **kwargs: Any) -> Any:
        lengths, width = workload.planned(a, counts["rollouts"]), kwargs["input_ids"].shape[1]
        return generate(
            *args, logits_processor=LogitsProcessorList([Planned(lengths, width)]), **kwargs
        )

    model.generate = planned


def trainer_config(a: Any, folder: Path) -> Any:
    """Return TRL's settings for the workload."""
    from trl import GRPOConfig

    rows, at_once = a.group_size * a.prompts_per_rollout, a.micro_batch or a.group_size
    if rows % at_once or (rows // at_once) % a.updates_per_rollout:
        sys.exit("micro-batches must divide a rollout's completions, and updates the micro-batches")
    return GRPOConfig(
        output_dir=str(folder / "out"),
        use_cpu=True,
        bf16=a.bf16,
        gradient_checkpointing=a.gradient_checkpointing,
        seed=a.seed,
        shuffle_dataset=False,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=rows // at_once // a.updates_per_rollout,
        steps_per_generation=rows // at_once,
        num_generations=a.group_size,
        max_completion_length=a.max_new_tokens,
        temperature=1.0,
        generation_kwargs={"min_new_tokens": a.max_new_tokens} if a.lengths == "fixed" else None,
        beta=a.beta,
        loss_type="dapo",
        multi_objective_aggregation="normalize_then_sum",
        learning_rate=a.lr,
        lr_scheduler_type="constant",
        max_steps=a.steps * a.updates_per_rollout,
        logging_steps=a.updates_per_rollout,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def build(a: Any, folder: Path, meter: Meter) -> Any:
    """Build the trainer, with a callback that passes each step to the meter."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    counts = {"rollouts": 0, "tokens": 0}

    class Recorder(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % a.updates_per_rollout == 0:
                meter.begin_step()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % a.updates_per_rollout == 0:
                meter.end_step(counts["tokens"])
                counts["tokens"] = 0

    if a.lengths == "random":
        force_lengths(a, model, tokenizer, counts)
    trainer = GRPOTrainer(
        model=model,
        args=trainer_config(a, folder),
        train_dataset=Dataset.from_dict({"prompt": workload.make_prompts(a)}),
        processing_class=tokenizer,
        reward_funcs=make_rewards(a, lambda: model, tokenizer),
        callbacks=[Recorder()],
    )
    generate = trainer._generate_single_turn

    def counted(*args: Any, **kwargs: Any) -> Any:
        ids, logprobs = generate(*args, **kwargs)
        counts["rollouts"] += 1
        counts["tokens"] += sum(map(len, ids))
        return ids, logprobs

    trainer._generate_single_turn = counted
    return trainer


def main() -> None:
    """Run the workload and print one line of JSON."""
    a = workload.parse_arguments(__doc__ or "")
    import torch

    torch.set_num_threads(a.threads)
    import transformers
    import trl

    meter = Meter()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        parameters = workload.save_model(a, Path(name))
        trainer = build(a, Path(name), meter)
        meter.start()
        trainer.train()
    versions = {
        "trl": trl.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    meter.report(a, "trl", versions, parameters)


if __name__ == "__main__":
    main()
