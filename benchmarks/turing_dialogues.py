"""Templated dialogues, a small model for them, and a rule judge: what ``benchmarks.turing`` is on.

A user orders a dish. Their history shows how they write, casually or politely, and what they want.
They are asked for a size or a place, and answer in their way. Like people, they often leave
something out. The texts of the warm start are such replies, and two faults of simulators: repeating
the question, and answering like an assistant.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlif_lightning.judges.base import Request
from rlif_lightning.judges.pairwise import MERITS, PENALTIES, SIDES
from rlif_lightning.rewards.written import Written

DISHES = ("pizza", "soup", "salad", "curry", "rice", "bread")
ANSWERS = {"size": ("small", "medium", "large"), "place": ("home", "office", "park")}
QUESTIONS = {
    "size": "which size of {dish} do you want today",
    "place": "where shall we bring the {dish} today",
}
STYLES = {"casual": ("yo", "lol"), "polite": ("please", "thanks")}
HISTORY = {"casual": "yo i want {dish} lol", "polite": "i would like {dish} please thanks"}
ASSISTANT = "as an assistant i recommend {answer} {dish}"
COPIES, ASSISTS = 0.2, 0.2  # shares of the warm start's texts
SAYS_DISH, SAYS_STYLE, ANSWERS_IT = 0.6, 0.6, 0.8


def human_reply(draw: random.Random, style: str, slot: str, dish: str) -> str:
    """Return one reply of a person, who may leave out answer, dish or style."""
    slots = slot if draw.random() < ANSWERS_IT else draw.choice([*ANSWERS])
    words = [draw.choice(ANSWERS[slots])]
    words += [dish] if draw.random() < SAYS_DISH else []
    if draw.random() < SAYS_STYLE:
        first, last = STYLES[style]
        words = [first, *words, last]
    return " ".join(words)


def rows(seed: int, size: int) -> list[dict[str, str]]:
    """Return problems with the human's ``reply`` and the warm start's ``text``."""
    draw, made = random.Random(seed), []
    for _ in range(size):
        style, slot, dish = (draw.choice([*each]) for each in (STYLES, ANSWERS, DISHES))
        question = QUESTIONS[slot].format(dish=dish)
        fault = draw.random()
        said = human_reply(draw, style, slot, dish)
        if fault < COPIES:
            said = question
        elif fault < COPIES + ASSISTS:
            said = ASSISTANT.format(answer=draw.choice(ANSWERS[slot]), dish=dish)
        made.append(
            {
                "question": f"you : {HISTORY[style].format(dish=dish)} . other : {question} .",
                "reply": human_reply(draw, style, slot, dish),
                "text": f"<reasoning> {style} {slot} </reasoning> [HUMAN]: {said}",
            }
        )
    return made


def qualities(reply: str, prompt: str, is_copied: bool) -> dict[str, float]:
    """Return a reply's merits and penalties by rules."""
    words, asked = set(reply.split()), prompt.partition("other :")[2]
    slot = "size" if "size" in asked else "place"
    style = "casual" if "yo" in prompt.split() else "polite"
    [other] = {*STYLES} - {style}
    values = dict.fromkeys((*MERITS, *PENALTIES), 0.0)
    values["immediate_target"] = float(bool(words & {*ANSWERS[slot]}))
    values["human_goal"] = float(any(dish in words for dish in DISHES if dish in prompt))
    is_styled = {*STYLES[style]} <= words and not words & {*STYLES[other]}
    values["communication_style"] = float(is_styled)
    values["source_copy"] = float(is_copied)
    values["assistant_like"] = float("assistant" in words)
    return values


def judge(request: Request) -> str:
    """Judge both replies by the same rules; the watch-list says what is copied."""
    values = request.values
    found = {
        side: qualities(
            values[side], values["prompt"], f"Reply {side[-1].upper()} has" in values["copied"]
        )
        for side in SIDES
    }
    return json.dumps({"analysis": "by rules", **found})


def similarity(request: Request) -> str:
    """Score 0 to 10 by the words that a reply shares with the human's, of all words of both."""
    ours, theirs = (set(request.values[name].split()) for name in ("completion", "reference"))
    return f"Score: {round(10 * len(ours & theirs) / max(len(ours | theirs), 1))}"


def share(holds: Callable[[str, str], bool]) -> Callable[..., list[float]]:
    """Return a reward function that says of each reply whether something holds."""

    def measured(completions: list[str], prompts: list[str]) -> list[float]:
        texts = [Written.of(text).reply for text in completions]
        return [float(holds(*each)) for each in zip(texts, prompts, strict=True)]

    return measured


def _is_perfect(reply: str, prompt: str) -> bool:
    values = qualities(reply, prompt, False)
    return all(values[name] for name in MERITS)


is_assistant_like = share(lambda reply, _: "assistant" in reply.split())
is_perfect = share(_is_perfect)


def make_model(folder: Path) -> None:
    """Write an untrained Llama of two layers, whose tokens are the dialogues' words."""
    import torch

    texts = " ".join(" ".join(row.values()) for row in rows(0, 2000))
    words = ["<pad>", "<unk>", "</s>", *sorted(set(re.findall(r"\S+", texts)))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=2, pad_token_id=0,
        initializer_range=0.05,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
