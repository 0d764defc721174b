"""Published conversations become problems: hand-written files in both layouts."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from harness.files import ROOT
from rlif_lightning.data.prompts import LocalFiles, PromptData

SPEC = importlib.util.spec_from_file_location(
    "conversation_rows", ROOT / "scripts" / "conversation_rows.py"
)
assert SPEC is not None
assert SPEC.loader is not None
script = importlib.util.module_from_spec(SPEC)
sys.modules["conversation_rows"] = script  # where its dataclass looks
SPEC.loader.exec_module(script)


def prism(conversation: str, user: str, turns: list[tuple[str, str, str]]) -> dict:
    """Each turn: the user's message, the chosen reply, the other one."""
    history = []
    for number, (said, chosen, other) in enumerate(turns):
        history += [
            {"turn": number, "role": "user", "content": said, "if_chosen": None, "score": None},
            {"turn": number, "role": "model", "content": other, "if_chosen": False, "score": 3},
            {"turn": number, "role": "model", "content": chosen, "if_chosen": True, "score": 90},
        ]
    return {
        "conversation_id": conversation,
        "user_id": user,
        "conversation_type": "unguided",
        "opening_prompt": turns[0][0],
        "conversation_turns": len(turns),
        "conversation_history": history,
    }


PRISM = [
    prism(
        "c2", "user1", [("hi", "hello", "no"), ("and\n now?", "later", "never"), ("ok", "", "x")]
    ),
    prism("c1", "user1", [("old one", "old reply", "bad"), ("old two", "end", "bad")]),
    prism("c3", "user2", [("alone", "yes", "no"), ("again", "yes", "no")]),
]
UTTERANCES = [
    {"id": "a", "speaker": "op", "conversation_id": "a", "reply_to": None, "text": "first post"},
    {"id": "b", "speaker": "me", "conversation_id": "a", "reply_to": "a", "text": "my answer"},
    {"id": "c", "speaker": "op", "conversation_id": "a", "reply_to": "b", "text": "really?"},
    {"id": "d", "speaker": "me", "conversation_id": "a", "reply_to": "c", "text": "really."},
    {"id": "e", "speaker": "other", "conversation_id": "a", "reply_to": "a", "text": "aside"},
    {"id": "f", "speaker": "me", "conversation_id": "0", "reply_to": "g", "text": "past"},
    {"id": "g", "speaker": "op", "conversation_id": "0", "reply_to": None, "text": "[deleted]"},
]
FORMER = {"speaker": "user", "conversation_id": "root", "reply_to": "reply-to"}


def test_prism_by_hand():
    """``c1`` is user1's history; user2 has too few conversations; a turn without reply is left."""
    rows = list(script.rows_of(script.of_prism(PRISM), 1))
    assert [row["reply"] for row in rows] == ["and now?", "ok"]
    assert {row["user"] for row in rows} == {"user1"}
    assert rows[1]["question"] == (
        "[HISTORY OF HUMAN]\n\n[CONVERSATION 1]\n[HUMAN]: old one\n[OTHER]: old reply\n"
        "[HUMAN]: old two\n\n[CURRENT CONVERSATION]\n[HUMAN]: hi\n[OTHER]: hello\n"
        f"[HUMAN]: and now?\n[OTHER]: later\n\n{script.TASK}\n"
    )
    assert not any("bad" in row["question"] or "never" in row["question"] for row in rows)


@pytest.mark.parametrize("names", [{}, FORMER], ids=["present", "former"])
def test_convokit_by_hand(names):
    """A message's context is the line of its parents, not the whole thread."""
    rows = [{names.get(key, key): value for key, value in row.items()} for row in UTTERANCES]
    found = [row for row in script.rows_of(script.of_convokit(rows), 1) if row["user"] == "me"]
    assert [row["reply"] for row in found] == ["my answer", "really."]
    current = found[1]["question"].split("[CURRENT CONVERSATION]\n")[1]
    assert current.startswith("[OTHER]: first post\n[HUMAN]: my answer\n[OTHER]: really?\n\n[TASK]")
    assert "[OTHER]: [deleted]\n[HUMAN]: past" in found[1]["question"]
    assert "aside" not in found[1]["question"]


def test_no_row_shows_its_reply():
    for exchanges in (script.of_prism(PRISM), script.of_convokit(UTTERANCES)):
        for row in script.rows_of(exchanges, 1):
            current = row["question"].split("[CURRENT CONVERSATION]\n")[1]
            assert not current.split("\n\n[TASK]")[0].endswith(f"]: {row['reply']}")


def test_a_loop_of_replies_ends():
    rows = [{**UTTERANCES[0], "reply_to": "b"}, UTTERANCES[1]]
    assert [len(each.before) for each in script.of_convokit(rows)] == [1, 1]


def test_the_files_are_data_of_a_run_and_share_no_person(tmp_path, capsys):
    made = [
        prism(f"{user}-{n}", f"user{user}", [("a", "b", "c"), (f"said\u2028{user}", "e", "f")])
        for user in range(20)
        for n in range(2)
    ]
    source = tmp_path / "conversations.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in made]
    source.write_text("\n".join(lines), encoding="utf-8")
    script.main(["prism", str(source), str(tmp_path), "--history=1", "--held_out=0.3"])
    assert "train:" in capsys.readouterr().out
    splits = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation")
    }
    people = [{row["user"] for row in split} for split in splits.values()]
    assert not people[0] & people[1]
    assert len(people[0] | people[1]) == 20
    assert len(people[1]) >= 2
    files = LocalFiles(str(tmp_path / "train.jsonl"), str(tmp_path / "validation.jsonl"))
    data = PromptData(files, tokenizer="rlif-arithmetic", prompts_per_rollout=1)
    data.setup("fit")
    split = data.split("train")
    assert split is not None
    assert split.batch([0]).texts == [splits["train"][0]["question"]]
    assert split.batch([0]).columns["reply"] == [splits["train"][0]["reply"]]
