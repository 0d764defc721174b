"""Observations to ids: suffixes by difference, templates that cannot be continued, settings."""

from __future__ import annotations

import copy

import pytest

from harness.episodes import CHAT, merging_tokenizer, settings_of
from rlif_lightning.data.environment_settings import EnvironmentSettings
from rlif_lightning.data.prompt_format import PromptFormat, PromptRenderer
from rlif_lightning.data.tokenizer import prompt_encoder
from rlif_lightning.data.turns import EnvironmentTask, environment_task

# Drops the thoughts of all assistants but the last one, as reasoning models' templates do.
FORGETFUL = CHAT.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' and not loop.last %}{% else %}{{ m.content }}{% endif %}",
)


def task_of(chat_template: str | None, **given) -> EnvironmentTask:
    tokenizer = copy.deepcopy(merging_tokenizer())
    tokenizer.chat_template, chat = chat_template, chat_template is not None
    renderer = PromptRenderer("question", PromptFormat(chat=chat), tokenizer if chat else None)
    encode = prompt_encoder(tokenizer, chat)
    task = environment_task(settings_of(**given), renderer, encode, tokenizer)
    assert task is not None
    return task


def text_of(ids: list[int]) -> str:
    return merging_tokenizer().decode(ids)


def test_a_suffix_is_what_the_template_adds():
    task = task_of(CHAT)
    ids = task.suffix("12+", last=20, ends=[2])
    assert text_of(ids) == "<eos>\n[user]12+\n[assistant]"
    assert task.suffix("12+", last=2, ends=[2]) == ids[1:]  # the policy drew <eos> itself
    assert task.suffix("12+", last=20, ends=[20]) == ids  # another end: the mark is inserted
    told = [{"role": "tool", "content": "1"}, {"role": "user", "content": "go"}]
    assert text_of(task.suffix(told, 2, [2])) == "\n[tool]1\n[user]go\n[assistant]"


@pytest.mark.parametrize("template", [CHAT, None])
def test_an_observation_spells_out_no_special_token(template):
    """A tool that repeats what it was told could otherwise end its turn and open another one."""
    task, words = task_of(template), "12<eos><bos>\ud800"
    for said in (words, [{"role": "tool", "name": words, "content": words}]):
        plain = task.suffix("12+", last=20, ends=[2])
        assert task.suffix(said, last=20, ends=[2]).count(2) == plain.count(2)
        assert task.prompt({"question": "1+"}, said, [])[1].tolist().count(2) == 0


def test_without_a_chat_an_observation_stands_in_its_template():
    task = task_of(None, template="<{observation}>")
    assert text_of(task.suffix("12+", 2, [2])) == "<12+>"
    assert text_of(task.suffix("", 2, [2])) == "<>"
    assert task.prompt({"question": "1+"}, "3=", [])[0] == "1+<3=>"
    assert task.prompt({"question": "1+"}, "", [])[0] == "1+"


def test_an_observation_is_encoded_apart_from_what_was_drawn():
    """1 drawn and 2+ observed are these two tokens, where the text 12+ is 12 and +."""
    task, tokenizer = task_of(None, template="{observation}"), merging_tokenizer()
    drawn = tokenizer("1").input_ids
    assert drawn + task.suffix("2+", 0, ()) != tokenizer("12+").input_ids
    assert len(tokenizer("12+").input_ids) == 2


def test_a_template_that_changes_what_it_wrote_is_refused():
    with pytest.raises(ValueError, match="does not keep what it has written"):
        task_of(FORGETFUL)


REFUSING = (
    "{% for m in messages %}{% if m.role == ROLE %}{{ raise_exception('no such turn') }}{% endif %}"
    "{% endfor %}"
) + CHAT
TOOL = {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize("thoughts", ["keep", "fork"])
def test_a_template_that_refuses_a_role_is_refused_in_setup(thoughts):
    """Not in mid-rollout, on the one rank whose environment has answered."""
    task = task_of(REFUSING.replace("ROLE", "'tool'"), thoughts=thoughts)
    task.check()  # without tools nobody has this role
    with pytest.raises(ValueError, match=r"'assistant', 'tool'\]: no such turn; use another"):
        task.check([TOOL])
    # Only one that follows an answer is refused; the prompt's own is not.
    alternating = REFUSING.replace("ROLE", "'user' and loop.index > 1")
    with pytest.raises(ValueError, match=r"'assistant', 'user'\]: no such turn"):
        task_of(alternating, thoughts=thoughts)
    named = CHAT.replace("[{{ m.role }}]", "[{{ m.role }}{{ m.name if m.role == 'tool' }}]")
    task_of(named, thoughts=thoughts).check([TOOL])


def test_a_template_that_shows_thoughts_less_is_accepted_by_fork_alone():
    opened = CHAT.replace("%}[assistant]{%", "%}[assistant]<{%")  # opens a thought
    with pytest.raises(ValueError, match=r"set data\.environment\.thoughts=fork"):
        task_of(opened)
    task = task_of(opened, thoughts="fork")
    text, _, messages = task.prompt({"question": "1+"}, "", [])
    chat = task.chat({"question": "1+"}, text, messages, [])
    follows = chat.follow("2>3", "4", last=20, ends=[2])
    assert follows.is_new
    assert text_of(follows.ids) == "[user]1+\n[assistant]2>3<eos>\n[user]4\n[assistant]<"


def test_white_space_around_words_begins_no_context():
    trimming = CHAT.replace("{{ m.content }}", "{{ m.content | trim }}")
    task = task_of(trimming, thoughts="fork")
    text, _, messages = task.prompt({"question": "1+"}, "", [])
    chat = task.chat({"question": "1+"}, text, messages, [])
    for words, last in ((" 12 \n", 2), ("", 2), ("3=", 20)):
        follows = chat.follow(words, "4<eos>", last, [2])
        assert not follows.is_new
        plain = "\n[user]4< eos>\n[assistant]"
        assert text_of(follows.ids) == ("" if last == 2 else "<eos>") + plain
    assert chat.text == task.rendered(chat.messages, None)


def test_tools_reach_the_template():
    shown = "{% if tools %}<{{ tools[0].name }}>{% endif %}" + CHAT
    task = task_of(shown)
    text, ids, messages = task.prompt({"question": "1+"}, "now", [{"name": "look"}])
    assert text == "<look>[user]1+\n\nnow\n[assistant]"
    assert text_of(ids.tolist()) == text
    assert messages == [{"role": "user", "content": "1+\n\nnow"}]


@pytest.mark.parametrize(
    "given",
    [
        {"max_turns": 0},
        {"max_turn_tokens": 0},
        {"max_observation_tokens": -1},
        {"workers": 0},
        {"step_seconds": 0.0},
        {"max_failed": 1.5},
        {"template": "no place"},
    ],
)
def test_settings_out_of_range_are_refused(given):
    with pytest.raises(ValueError, match=f"environment.{next(iter(given))}|{next(iter(given))}="):
        EnvironmentSettings("harness.episodes.Talker", **given)
