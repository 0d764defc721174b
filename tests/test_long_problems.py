"""The builder of long problems: graphs, walks, a search agent's tiers, files, and their overlap."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlif_lightning import LocalFiles
from rlif_lightning.data import long_problems
from rlif_lightning.data.entity_names import spelled
from rlif_lightning.data.link_graph import Document, Link, synthetic_graph, wikipedia_graph
from rlif_lightning.data.link_walks import Walk, random_walk
from rlif_lightning.data.long_problems import Recipe, filled, overlap, problem
from rlif_lightning.data.search_agent import Trajectory, WordSearch, rule_agent


def document(title: str, text: str, *targets: str) -> Document:
    links = tuple(Link(f"{title} knows {it}.", it, it) for it in targets)
    return Document(title, text, links)


# Ada -> Bo -> Cy; Di names Bo, Ed names nobody.
GRAPH = {
    "Ada": document("Ada", "Ada knows Bo.", "Bo"),
    "Bo": document("Bo", "Bo knows Cy.", "Cy"),
    "Cy": document("Cy", "Cy sleeps."),
    "Di": document("Di", "Di likes Bo much."),
    "Ed": document("Ed", "Ed knows cats."),
}
WALK = Walk("Ada", (GRAPH["Ada"].links[0], GRAPH["Bo"].links[0]))


def test_a_walk_by_hand():
    assert WALK.sources == ["Ada", "Bo"]
    assert WALK.entities == ["Bo", "Cy"]
    assert WALK.question == "Ada knows (1). (1) knows (2). What is (2)?"


def test_a_sentence_without_its_documents_title_says_where_it_stands():
    links = (Link("He met Bo.", "Bo", "Bo"), Link("They saw Cy twice.", "Cy", "Cy"))
    assert Walk("Ada", links).steps() == ["On Ada: He met (1).", "On (1): They saw (2) twice."]


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 60), st.integers(1, 4), st.integers(0, 10**6))
def test_synthetic_graphs_are_whole_and_reproducible(size, links, seed):
    links = min(links, size - 1)
    graph = synthetic_graph(size, links, random.Random(seed))
    assert graph == synthetic_graph(size, links, random.Random(seed))
    assert len(graph) == size
    for title, each in graph.items():
        targets = [link.target for link in each.links]
        assert len(set(targets)) == links
        assert set(targets) <= set(graph) - {title}
        assert all(link.sentence in each.text for link in each.links)
    walk = random_walk(graph, size - 1 if links == 1 else 1, random.Random(seed))
    assert len({walk.start, *walk.entities}) == len(walk.links) + 1


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6))
def test_a_walk_is_answered_by_its_documents_and_shows_no_answer(hops, seed):
    graph = synthetic_graph(30, 3, random.Random(seed))
    walk = random_walk(graph, hops, random.Random(seed))
    here = walk.start
    for link in walk.links:
        assert link in graph[here].links
        here = link.target
    assert here == walk.entities[-1]
    words = spelled(walk.question).split()
    assert not set(words) & {spelled(entity) for entity in walk.entities}


def test_search_counts_rare_words_more():
    """Three of five documents have "knows", and one has "cats"."""
    search = WordSearch(GRAPH)
    assert search("knows cats", 3) == ["Ed", "Ada", "Bo"]
    assert search("bo", 9) == ["Ada", "Bo", "Di"]  # equal scores: the graph's order
    assert search("nothing", 9) == []


def test_the_tiers_of_a_trajectory():
    found = Trajectory(("A", "B", "C", "D", "B"), ("A", "B", "A", "E"), ("A",))
    assert found.tiers == (["B", "E"], ["C", "D"])


def test_the_rule_agent_by_hand():
    """Searches "Ada knows" and "Bo knows"; it opens three results of each, and cites the walk's."""
    found = rule_agent(WALK, GRAPH, WordSearch(GRAPH), 3)
    assert found.cited == ("Ada", "Bo")
    assert found.returned == ("Ada", "Bo", "Ed", "Ada", "Bo", "Di")
    assert found.tiers == (["Ed", "Di"], [])


def test_filling_and_overlap_by_hand():
    """The walk's documents are 3 + 3 words long, Di 4, Ed 3, Cy 2."""
    recipe = Recipe(length=10)
    assert filled(WALK, ["Di", "Ed", "Cy"], GRAPH, recipe) == ["Di"]
    assert filled(WALK, ["Ed", "Di", "Ada"], GRAPH, recipe) == ["Ed"]
    assert filled(WALK, ["Ed", "Di", "Cy"], GRAPH, Recipe(length=12)) == ["Ed", "Cy"]
    assert filled(WALK, ["Ed"], GRAPH, Recipe(length=1)) == []
    assert overlap(WALK, ["Di", "Ed", "Cy"], GRAPH) == pytest.approx(2 / 3)
    assert math.isnan(overlap(WALK, [], GRAPH))


def test_a_problem_holds_its_documents_and_no_more_than_its_length():
    graph = synthetic_graph(50, 3, random.Random(1))
    recipe = Recipe((2, 3), 120)
    row, overlaps = problem(graph, WordSearch(graph), recipe, "seed")
    assert row == problem(graph, WordSearch(graph), recipe, "seed")[0]
    context, _, question = row["prompt"].partition("\n\nQuestion: ")
    assert question == row["question"]
    assert context.split("\n\n") == [graph[title].text for title in row["documents"]]
    assert 100 < len(context.split()) <= 120
    assert row["answer"] == row["entities"][-1]
    assert row["hops"] == len(row["entities"])
    assert set(overlaps) == set(long_problems.WAYS)


def test_the_command_writes_files_that_can_be_trained_on(tmp_path, capsys):
    given_ = ["--problems=30", "--validation-problems=10", "--documents=60", "--length=120"]
    long_problems.main([*given_, f"--output={tmp_path / 'new'}"])
    said = capsys.readouterr().out.splitlines()
    shares = {line[:20].strip(): float(line[20:27]) for line in said[1:5]}
    assert shares["trajectory, tiered"] > shares["random"] > 0
    paths = {name: str(tmp_path / "new" / f"{name}.jsonl") for name in ("train", "validation")}
    source = LocalFiles(**paths)
    train, validation = source.load("train"), source.load("validation")
    assert (len(train), len(validation)) == (30, 10)
    assert not set(train["prompt"]) & set(validation["prompt"])
    assert isinstance(train[0]["entities"][0], str)


def page(title: str, text: list[str], *anchors: tuple[str, str, int]) -> str:
    """A page of KILT's layout; an anchor is its text, its href and its paragraph."""
    found = [
        {"text": it, "href": href, "paragraph_id": number, "start": text[number].index(it)}
        for it, href, number in anchors
    ]
    return json.dumps({"wikipedia_title": title, "text": text, "anchors": found})


def kilt(folder: Path) -> Path:
    path = folder / "kilt.jsonl"
    pages = [
        page("Ada B", ["Ada B\n", "She was born. She met the poet Bo in Ro. Then she left."],
             ("poet Bo", "Bo%20C", 1), ("Ro", "Nowhere", 1)),
        page("Bo C", ["Bo C\n", "Bo lived in Dun."], ("Dun", "Dun_(city)#History", 1)),
        page("Dun (city)", ["Dun (city)\n", "Dun is old."]),
    ]  # fmt: skip
    path.write_text("\n".join(pages))
    return path


def test_a_name_inside_of_a_longer_word_stays():
    links = (Link("Ada left Ro, not Rome.", "Ro", "Ro"), Link("Rows of Ro end in X2.", "X2", "X2"))
    assert Walk("Ada", links).steps() == [
        "Ada left (1), not Rome.",
        "Rows of (1) end in (2).",
    ]
    assert Walk("Ada", (Link("Ada has dogs.", "dog", "Dog"),)).steps() == ["Ada has (1)s."]


def test_a_link_without_text_is_none(tmp_path):
    path = tmp_path / "kilt.jsonl"
    bo = page("Bo C", ["Bo C\n", "Bo lived."])
    path.write_text(f"{page('Ada', ['Ada met Bo C.'], ('', 'Bo%20C', 0))}\n{bo}\n")
    assert wikipedia_graph([path])["Ada"].links == ()


def test_wikipedia_pages_by_hand(tmp_path):
    graph = wikipedia_graph([kilt(tmp_path)])
    assert graph["Ada B"].links == (Link("She met the poet Bo in Ro.", "poet Bo", "Bo C"),)
    assert graph["Bo C"].links == (Link("Bo lived in Dun.", "Dun", "Dun (city)"),)
    assert graph["Dun (city)"].text == "Dun (city)\nDun is old."
    walk = random_walk(graph, 2, random.Random(0))
    assert walk.question == "On Ada B: She met the (1) in Ro. On (1): Bo lived in (2). What is (2)?"


def test_no_question_of_validation_is_trained_on(tmp_path):
    def made():
        for number, question in enumerate("aabacb"):
            row = {"prompt": f"{number}{question}", "question": question, "answer": "A"}
            yield row, dict.fromkeys(long_problems.WAYS, 0.0)

    long_problems.write_problems(tmp_path, made(), (2, 2))
    train, validation = (
        [
            json.loads(line)["prompt"]
            for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()
        ]
        for name in ("train", "validation")
    )
    assert (train, validation) == (["0a", "1a"], ["2b", "4c"])


@pytest.mark.full  # pages by hand: above; the other command writes files
def test_the_command_reads_wikipedia_pages(tmp_path, capsys):
    given_ = [f"--wikipedia={kilt(tmp_path)}", "--hops", "1", "2", f"--output={tmp_path}"]
    long_problems.main([*given_, "--problems=2", "--validation-problems=1"])
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert {row["answer"] for row in rows} <= {"Bo C", "Dun (city)"}
    with pytest.raises(ValueError, match="different problems were found, not 1000"):
        long_problems.main([*given_, "--problems=999", "--validation-problems=1"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: synthetic_graph(3, 3, random.Random(0)), "size=3, links=3: need at least 2"),
        (lambda _: Recipe((3, 2)), r"hops=\(3, 2\), length=400, returned=10: need at least 1"),
        (lambda _: random_walk(GRAPH, 3, random.Random(0)), "hops=3: no walk of that length"),
    ],
)
def test_what_cannot_be_made_is_refused(call, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)


def test_a_line_that_is_no_page_is_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(page("A", ["A"]) + "\n" + json.dumps({"title": "B"}))
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2: KeyError: 'wikipedia_title'"):
        wikipedia_graph([path])
