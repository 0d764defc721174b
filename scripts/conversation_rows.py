"""Make rows that PromptData reads of published conversations: what did this person say next?

    python scripts/conversation_rows.py prism conversations.jsonl data/prism
    python scripts/conversation_rows.py convokit CORPUS_FOLDER data/reddit

Layouts: ``conversations.jsonl`` of PRISM (on the hub HannahRoseKirk/prism-alignment) and
``utterances.jsonl`` of ConvoKit (https://convokit.cornell.edu/documentation/data_format.html).
The folder gets ``train.jsonl`` and ``validation.jsonl``. A row has ``question`` (what is known of
the person, the conversation so far, and the task), ``reply`` (what the person wrote), ``user`` and
``conversation``. A person is in one split alone. Their first conversations are their history, and
each later message of theirs that answers somebody is a row.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASK = """\
[TASK]
Write what [HUMAN] says next, in their own manner. First reason briefly about what they would say, \
then write the message alone, in this form:
<reasoning>...</reasoning>
[HUMAN]: the message"""


@dataclass(frozen=True)
class Exchange:
    """A message with what came before it.

    Attributes:
        user: who wrote it.
        conversation: where.
        before: the messages that it follows, the earliest first: whether the user wrote each, and
            its text.
        reply: the message.
    """

    user: str
    conversation: str
    before: tuple[tuple[bool, str], ...]
    reply: str

    @property
    def answers_somebody(self) -> bool:
        return bool(self.before) and not self.before[-1][0]

    def shown(self, with_reply: bool) -> str:
        """Return the messages as lines."""
        lines = [*self.before, (True, self.reply)] if with_reply else self.before
        return "\n".join(f"[{'HUMAN' if own else 'OTHER'}]: {text}" for own, text in lines)


def plain(text: Any) -> str:
    """Return a text on one line."""
    return " ".join(str(text or "").split())


def of_prism(conversations: Iterable[dict[str, Any]]) -> Iterator[Exchange]:
    """Yield the messages of PRISM's users; of a turn's model replies the chosen one counts."""
    for row in conversations:
        before: list[tuple[bool, str]] = []
        for message in sorted(row["conversation_history"], key=lambda each: each["turn"]):
            is_own, text = message["role"] == "user", plain(message["content"])
            if not text or not (is_own or message.get("if_chosen")):
                continue
            if is_own:
                yield Exchange(str(row["user_id"]), str(row["conversation_id"]), (*before,), text)
            before.append((is_own, text))


def of_convokit(utterances: Iterable[dict[str, Any]]) -> Iterator[Exchange]:
    """Yield the messages of a ConvoKit corpus, each after the line of messages that it answers.

    Former corpora say ``user``, ``root`` and ``reply-to`` for ``speaker``, ``conversation_id`` and
    ``reply_to``.
    """
    known = {str(row["id"]): row for row in utterances}
    for row in known.values():
        user, before, seen = _speaker(row), [], {row["id"]}
        parent = _parent(row)
        while parent in known and parent not in seen:
            seen.add(parent)
            before.append((_speaker(known[parent]) == user, plain(known[parent]["text"])))
            parent = _parent(known[parent])
        if text := plain(row["text"]):
            place = str(row.get("conversation_id", row.get("root")))
            yield Exchange(user, place, tuple(each for each in before[::-1] if each[1]), text)


def _speaker(row: dict[str, Any]) -> str:
    return str(row.get("speaker", row.get("user")))


def _parent(row: dict[str, Any]) -> str:
    return str(row.get("reply_to", row.get("reply-to")))


def rows_of(exchanges: Iterable[Exchange], history: int) -> Iterator[dict[str, str]]:
    """Yield the rows of all users with more than ``history`` conversations.

    Args:
        exchanges: of all users.
        history: conversations of a user that are shown in each of their rows.
    """
    users: dict[str, dict[str, list[Exchange]]] = defaultdict(lambda: defaultdict(list))
    for each in exchanges:
        users[each.user][each.conversation].append(each)
    for user in sorted(users):
        names = sorted(users[user])
        past = [max(users[user][name], key=lambda it: len(it.before)) for name in names[:history]]
        parts = [f"[CONVERSATION {n}]\n{it.shown(True)}" for n, it in enumerate(past, 1)]
        known = "\n\n".join(["[HISTORY OF HUMAN]", *parts])
        for exchange in (each for name in names[history:] for each in users[user][name]):
            if exchange.answers_somebody:
                current = f"[CURRENT CONVERSATION]\n{exchange.shown(False)}"
                yield {
                    "question": "\n\n".join([known, current, TASK]) + "\n",
                    "reply": exchange.reply,
                    "user": user,
                    "conversation": exchange.conversation,
                }


def is_held_out(user: str, share: float) -> bool:
    """Say whether a user is in the validation split: by a hash, whoever else is there."""
    number = int.from_bytes(hashlib.sha256(user.encode()).digest()[:8], "big")
    return number / 2**64 < share


def read(layout: str, path: Path) -> Iterator[Exchange]:
    """Read the messages of a file or, of ConvoKit, of a corpus folder."""
    if layout == "convokit" and path.is_dir():
        path = path / "utterances.jsonl"
    with path.open(encoding="utf-8") as file:
        lines = (json.loads(line) for line in file if line.strip())
        yield from of_prism(lines) if layout == "prism" else of_convokit(lines)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("layout", choices=("prism", "convokit"))
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--history", type=int, default=3, help="conversations shown of a person")
    parser.add_argument("--held_out", type=float, default=0.1, help="share of the people")
    given = parser.parse_args(arguments)
    made: dict[str, list[str]] = {"train": [], "validation": []}
    for row in rows_of(read(given.layout, given.source), given.history):
        name = "validation" if is_held_out(row["user"], given.held_out) else "train"
        made[name].append(json.dumps(row, ensure_ascii=False))
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, lines in made.items():
        (given.folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        print(f"{name}: {len(lines)} rows")


if __name__ == "__main__":
    main()
