"""Problems to prompts: what the model reads, which rows are used, and what each mistake is told."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rlif_lightning.data.prompt_format import PromptFormat, PromptRenderer
from rlif_lightning.data.prompts import ArithmeticProblems, ProblemSource, PromptData

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if"
    " add_generation_prompt %}<a>{% endif %}"
)
VOCABULARY = ["^", *(chr(code) for code in range(32, 94)), *"_abcdefghijklmnopqrstuvwxyz{|}\n"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    """A folder with a tokenizer of one token per character that puts "^" (id 0) before a text; no
    chat template.
    """
    return save_tokenizer(tmp_path_factory.mktemp("plain"), None)


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory) -> str:
    """The same with a chat template."""
    return save_tokenizer(tmp_path_factory.mktemp("chat"), CHAT)


@pytest.fixture(scope="module")
def ending_tokenizer(tmp_path_factory) -> str:
    """The same without a chat template, but with an end of sequence "|" behind every text
    (``add_eos_token``).
    """
    return save_tokenizer(tmp_path_factory.mktemp("ending"), None, "^ $A |")


def save_tokenizer(folder, chat_template, single: str = "^ $A") -> str:
    core = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token="^")
    )
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("^", 0), ("|", VOCABULARY.index("|"))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="^", eos_token="|", chat_template=chat_template
    ).save_pretrained(folder)
    return str(folder)


class Rows(ProblemSource):
    """A user's own source."""

    def __init__(self, train: list[dict], validation: list[dict] | None = None):
        self.splits = {"train": train, "validation": validation or train}

    def load(self, split):
        return Dataset.from_list(self.splits[split])


ROWS = [{"question": f"{'9' * (i + 1)}=", "answer": "9" * (i + 1), "level": i} for i in range(6)]


def ready(source, tokenizer, stage=None, **arguments) -> PromptData:
    names = ("template", "chat", "system_prompt", "examples")
    form = PromptFormat(**{name: arguments.pop(name) for name in names if name in arguments})
    data = PromptData(source, tokenizer, format=form, **{"prompts_per_rollout": 2, **arguments})
    data.setup(stage)
    return data


def decoded(batch) -> list[str]:
    return ["".join(VOCABULARY[i] for i in ids) for ids in batch.token_ids]


def validation(data) -> list:
    return list(data.val_dataloader())


def test_training_batches_carry_prompts_gold_answers_and_rows(tokenizer):
    data = ready(Rows(ROWS), tokenizer, answer_column="answer")
    batches = list(data.train_dataloader())
    assert [len(batch) for batch in batches] == [2, 2, 2]
    assert sorted(row for batch in batches for row in batch.index.tolist()) == list(range(6))
    for batch in batches:
        for k, row in enumerate(batch.index.tolist()):
            assert batch.texts[k] == ROWS[row]["question"]
            assert {name: values[k] for name, values in batch.columns.items()} == ROWS[row]
        assert decoded(batch) == [f"^{text}" for text in batch.texts]
        assert set(batch.only(["level", "topic"]).columns) == {"level"}


def test_validation_test_and_prediction_read_the_validation_split_in_order(tokenizer):
    data = ready(Rows(ROWS, ROWS[:5]), tokenizer, validation_prompts=3)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert [batch.index.tolist() for batch in loader] == [[0, 1], [2]]
    assert [
        len(batch)
        for batch in validation(ready(Rows(ROWS), tokenizer, validation_prompts_per_batch=4))
    ] == [4, 2]


def test_the_template_shows_other_columns_and_literal_braces(tokenizer):
    data = ready(Rows(ROWS[:2]), tokenizer, template="l{level} {prompt} {{x}}")
    assert [text for batch in validation(data) for text in batch.texts] == [
        "l0 9= {x}",
        "l1 99= {x}",
    ]


def test_few_shot_examples_stand_before_the_prompt(tokenizer):
    examples = [{"question": "1+1", "answer": " 2"}, {"question": "2+3", "answer": " 5"}]
    data = ready(Rows(ROWS), tokenizer, template="q:{prompt} a:", examples=examples)
    batch = validation(data)[0]
    assert batch.texts[0] == "q:1+1 a: 2\n\nq:2+3 a: 5\n\nq:9= a:"
    assert decoded(batch)[0] == "^" + batch.texts[0]


def test_a_chat_has_turns_and_no_second_start_token(chat_tokenizer):
    data = ready(
        Rows(ROWS),
        chat_tokenizer,
        chat=True,
        system_prompt="be brief",
        template="solve {prompt}",
        examples=[{"question": "1+1", "answer": "2"}],
    )
    batch = validation(data)[0]
    assert batch.texts[0] == "<system>be brief<user>solve 1+1<assistant>2<user>solve 9=<a>"
    assert decoded(batch)[0] == batch.texts[0]
    assert validation(ready(Rows(ROWS), chat_tokenizer, chat=True))[0].texts[0] == "<user>9=<a>"


def test_long_prompts_are_refused_with_their_number_or_left_out(tokenizer, caplog):
    # Row i has i + 3 tokens: the start token, i + 1 nines and "=".
    with pytest.raises(
        ValueError, match=r"max_prompt_tokens=5: 3 of 6 train prompts are longer \(up to 8 tokens\)"
    ):
        ready(Rows(ROWS), tokenizer, max_prompt_tokens=5)
    data = ready(Rows(ROWS, ROWS[::-1]), tokenizer, max_prompt_tokens=5, overlong="filter")
    assert "3 of 6 train prompts" in caplog.text
    assert [batch.index.tolist() for batch in validation(data)] == [
        [3, 4],
        [5],
    ]  # rows of the split, not of what is left
    assert [batch.texts for batch in validation(data)] == [["999=", "99="], ["9="]]
    assert [decoded(batch) for batch in validation(data)] == [["^999=", "^99="], ["^9="]]
    assert ready(Rows(ROWS), tokenizer, max_prompt_tokens=8) is not None


def test_fit_without_validation_needs_no_validation_split(tokenizer):
    class TrainOnly(Rows):
        def load(self, split):
            assert split == "train"
            return super().load(split)

    data = PromptData(TrainOnly(ROWS), tokenizer, prompts_per_rollout=2)
    data.trainer = SimpleNamespace(
        limit_val_batches=0, overfit_batches=0, distributed_sampler_kwargs=None
    )
    data.setup("fit")
    assert len(data.train_dataloader()) == 3


def distributed(processes: int, rank: int) -> SimpleNamespace:
    """The three things read from a trainer, which would take several processes to be real."""
    shard = {"num_replicas": processes, "rank": rank}
    return SimpleNamespace(
        limit_val_batches=1.0, overfit_batches=0, distributed_sampler_kwargs=shard
    )


def test_each_process_has_its_share(tokenizer):
    seen = []
    for rank in range(2):
        data = PromptData(Rows(ROWS, ROWS[:5]), tokenizer, prompts_per_rollout=2)
        data.trainer = distributed(2, rank)
        data.setup("fit")
        assert [len(batch) for batch in data.train_dataloader()] == [1, 1, 1]
        seen += [row for batch in data.val_dataloader() for row in batch.index.tolist()]
    assert sorted(seen) == list(range(5))


@pytest.mark.parametrize(
    ("processes", "arguments", "message"),
    [
        (2, {"prompts_per_rollout": 3}, "prompts_per_rollout=3 can't be shared by 2 processes"),
        (
            4,
            {"prompts_per_rollout": 4, "validation_prompts": 3},
            "the validation split has 3 prompts, fewer than the 4",
        ),
    ],
)
def test_batches_that_processes_cannot_share_are_refused(tokenizer, processes, arguments, message):
    data = PromptData(Rows(ROWS), tokenizer, **arguments)
    data.trainer = distributed(processes, 0)
    with pytest.raises(ValueError, match=re.escape(message)):
        data.setup("fit")


def test_overfit_batches_are_refused(tokenizer):
    data = PromptData(Rows(ROWS), tokenizer)
    data.trainer = SimpleNamespace(
        limit_val_batches=1.0, overfit_batches=1, distributed_sampler_kwargs=None
    )
    with pytest.raises(ValueError, match="overfit_batches"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_size": 0}, "group_size=0"),
        ({"prompts_per_rollout": 0}, "prompts_per_rollout=0"),
        ({"validation_prompts_per_batch": 0}, "validation_prompts_per_batch=0"),
        ({"validation_prompts": 0}, "validation_prompts=0"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens=0"),
        ({"seed": -1}, "seed=-1"),
        ({"system_prompt": "be brief"}, "system_prompt='be brief' needs chat=true"),
        ({"examples": [{"question": "1+1"}]}, "must have the keys 'question' and 'answer'"),
        (
            {"template": "{prompt} {level}", "examples": [{"question": "1+1", "answer": "2"}]},
            "cannot be filled with '1+1': there is no 'level'; change the template",
        ),
        (
            {"prompts_per_rollout": 7},
            "prompts_per_rollout=7, but the train split has only 6 prompts",
        ),
        (
            {"prompt_column": "problem"},
            "prompt_column='problem' is not in the train split; its columns are ['answer', ",
        ),
        (
            {"answer_column": "gold"},
            "answer_column='gold' is not in the train split; its columns are ['answer', ",
        ),
        ({"prompt_column": "level"}, "row 0 of the train split is 0, not a text"),
        ({"template": "{prompt} {topic}"}, "unknown field 'topic'"),
        ({"template": "{prompt} \\boxed{}"}, "write {{ and }} for braces that should be printed"),
        (
            {"template": "{prompt} {answer}", "answer_column": "answer"},
            "shows the gold answer 'answer'",
        ),
        ({"chat": True}, "has no chat template"),
        (
            {"max_prompt_tokens": 1, "overlong": "filter"},
            "has only 0 prompts; overlong=filter leaves none: raise max_prompt_tokens",
        ),
    ],
)
def test_mistakes_are_told(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ready(Rows(ROWS), tokenizer, **arguments)


@pytest.mark.parametrize("template", ["{prompt} {hint.text}", "{prompt} {hint[text]}"])
def test_an_empty_column_is_not_shown_as_none(tokenizer, template):
    rows = [row | {"hint": {"text": "add" if k else None}} for k, row in enumerate(ROWS)]
    with pytest.raises(ValueError, match=r"'9=': 'hint.text.?' is empty \(null\); change"):
        ready(Rows(rows), tokenizer, template=template)


def test_a_missing_tokenizer_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer='.*nowhere': no tokenizer can be loaded"):
        ready(Rows(ROWS), str(tmp_path / "nowhere"))


def test_an_empty_split_is_refused(tokenizer):
    class Empty(Rows):
        def load(self, split):
            return Dataset.from_dict({"question": []})

    with pytest.raises(ValueError, match="the train split of Empty has no rows"):
        ready(Empty(ROWS), tokenizer)


def test_a_prompt_without_tokens_is_refused(chat_tokenizer, tmp_path):
    bare = PreTrainedTokenizerFast.from_pretrained(chat_tokenizer)
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", special_tokens=[]
    )
    bare.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="row 1 of the train split has no tokens"):
        ready(Rows([ROWS[0], {**ROWS[1], "question": ""}]), str(tmp_path))


def test_many_problems_are_tokenised_in_order(tokenizer):
    source = ArithmeticProblems(size=2500, validation_size=1)
    batch = next(iter(ready(source, tokenizer, prompts_per_rollout=2500).train_dataloader()))
    questions = source.load("train")["question"]
    assert [f"^{questions[row]}" for row in batch.index.tolist()] == decoded(batch)


def test_a_row_that_is_no_text_is_named(tokenizer):
    rows = [{"question": "1+1="} for _ in range(1500)]
    rows[1234] = {"question": None}
    with pytest.raises(ValueError, match=r"row 1234 of the train split is None, not a text"):
        ready(Rows(rows), tokenizer)


VERL = [
    {
        "prompt": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": f"{i}+1="},
        ],
        "reward_model": {"ground_truth": f"{i + 1}", "style": "rule"},
        "extra_info": {"index": i, "split": "train"},
    }
    for i in range(6)
]


def test_messages_are_joined_without_a_chat_template_and_turns_with_one(tokenizer, chat_tokenizer):
    columns = {"prompt_column": "prompt", "answer_column": "reward_model.ground_truth"}
    plain = validation(
        ready(Rows(VERL), tokenizer, **columns, template="{extra_info.index}: {prompt}")
    )[0]
    assert plain.texts == ["be brief\n\n0: 0+1=", "be brief\n\n1: 1+1="]
    assert plain.column("reward_model.ground_truth") == ["1", "2"]
    examples = [{"question": "5+5=", "answer": "10"}]
    chat = validation(
        ready(Rows(VERL), chat_tokenizer, **columns, chat=True, template="solve {prompt}")
    )[0]
    assert chat.texts[0] == "<system>be brief<user>solve 0+1=<a>"
    few = validation(ready(Rows(VERL), chat_tokenizer, **columns, chat=True, examples=examples))[0]
    assert few.texts[0] == "<system>be brief<user>5+5=<assistant>10<user>0+1=<a>"
    few = validation(ready(Rows(VERL), tokenizer, **columns, examples=examples))[0]
    assert few.texts[0] == "be brief\n\n5+5=10\n\n0+1="


def test_turns_that_a_chat_template_refuses_are_told(tmp_path):
    strict = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + CHAT
    )
    settings = {"prompt_column": "prompt", "chat": True}
    with pytest.raises(
        ValueError,
        match=r"refuses the turns \['system', 'user'\] of '0\+1=': no system role; change",
    ):
        ready(Rows(VERL), save_tokenizer(tmp_path, strict), **settings)


def test_a_conversation_keeps_its_turns(chat_tokenizer):
    turns = [("user", "1+1="), ("assistant", "2"), ("user", "and 2+2=")]
    row = {"prompt": [{"role": role, "content": text} for role, text in turns]}
    settings = {
        "prompt_column": "prompt",
        "chat": True,
        "prompts_per_rollout": 1,
        "system_prompt": "add",
    }
    batch = validation(ready(Rows([row]), chat_tokenizer, **settings))[0]
    assert batch.texts == ["<system>add<user>1+1=<assistant>2<user>and 2+2=<a>"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "row 0 of the train split is [], not a text or a list of messages {role, content}"),
        ([{"role": "tool", "content": "x"}], "not a text or a list of messages"),
        ([{"role": "user", "content": None}], "not a text or a list of messages"),
        (
            [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}],
            "ends with the turn of the assistant, '2': the last message must be the user's",
        ),
        (
            [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1="}],
            "system_prompt='add', but row 0 of the train split has a system message of its own,"
            " 'be brief'",
        ),
    ],
)
def test_messages_that_are_no_prompt_are_refused(chat_tokenizer, messages, message):
    settings = {
        "prompt_column": "prompt",
        "chat": True,
        "prompts_per_rollout": 1,
        "system_prompt": "add",
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        ready(Rows([{"prompt": messages}]), chat_tokenizer, **settings)


def test_a_long_row_makes_a_short_message(tokenizer):
    with pytest.raises(ValueError, match="not a text") as info:
        ready(Rows([{"question": ["x" * 10**6]}]), tokenizer, prompts_per_rollout=1)
    assert len(str(info.value)) < 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"answer_column": "reward_model.truth"},
            "answer_column='reward_model.truth' is not in the train split; its columns are"
            " ['extra_info',"
            " 'extra_info.index', 'extra_info.split', 'prompt', 'reward_model',"
            " 'reward_model.ground_truth', ",
        ),
        (
            {"answer_column": "reward_model.style.x"},
            "answer_column='reward_model.style.x' is not in the train split",
        ),
        ({"template": "{prompt} {extra_info.level}"}, "unknown field 'extra_info.level'"),
        (
            {"template": "{prompt} {reward_model}"},
            "shows the gold answer 'reward_model.ground_truth'",
        ),
        (
            {"template": "{prompt} {reward_model.ground_truth}"},
            "shows the gold answer 'reward_model.ground_truth'",
        ),
        (
            {"template": "{prompt} {reward_model[ground_truth]}"},
            "shows the gold answer 'reward_model.ground_truth'",
        ),
        (
            {"template": "{prompt:{reward_model}}"},
            "shows the gold answer 'reward_model.ground_truth'",
        ),
        ({"answer_column": "prompt"}, "prompt_column='prompt' shows the gold answer 'prompt'"),
    ],
)
def test_nested_columns_are_named_and_hidden_as_flat_ones(tokenizer, arguments, message):
    settings = {
        "prompt_column": "prompt",
        "answer_column": "reward_model.ground_truth",
        **arguments,
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        ready(Rows(VERL), tokenizer, **settings)
    ready(
        Rows(VERL),
        tokenizer,
        **(settings | {"answer_column": "reward_model.ground_truth", "template": "{prompt}"}),
    )


def test_a_column_whose_name_has_a_dot_comes_before_a_nested_one(tokenizer):
    rows = [{"a.b": "1+1=", "a": {"b": "2+2=", "c": "4"}}]
    batch = validation(
        ready(
            Rows(rows), tokenizer, prompt_column="a.b", answer_column="a.c", prompts_per_rollout=1
        )
    )[0]
    assert (batch.texts, batch.column("a.c")) == (["1+1="], ["4"])


def test_format_does_not_change_the_problem_it_fills_in():
    assert PromptRenderer("question").render({"question": "a {b} {{c}}"}) == "a {b} {{c}}"


def test_what_a_tokenizer_appends_is_left_out_of_prompts_with_one_line(
    tokenizer, ending_tokenizer, caplog
):
    """Also when they are tokenised batch by batch, to predict."""
    for stage in (None, "predict"):
        caplog.clear()
        data = ready(Rows(ROWS), ending_tokenizer, stage, max_prompt_tokens=8)
        loader = data.val_dataloader() if stage is None else data.predict_dataloader()
        expected = [
            [0, *[VOCABULARY.index("9")] * (i + 1), VOCABULARY.index("=")] for i in range(6)
        ]
        assert [ids.tolist() for batch in loader for ids in batch.token_ids] == expected
        assert caplog.text.count("appends ['|'] to texts; left out of prompts") == 1
    caplog.clear()
    data = ready(Rows(ROWS), tokenizer)
    assert [ids.tolist() for batch in data.val_dataloader() for ids in batch.token_ids] == expected
    assert "appends" not in caplog.text


def test_an_end_of_sequence_that_the_template_writes_stays(ending_tokenizer):
    data = ready(Rows(ROWS), ending_tokenizer, template="{prompt}|")
    ends = [ids.tolist()[-2:] for batch in data.val_dataloader() for ids in batch.token_ids]
    assert ends == [[VOCABULARY.index("="), VOCABULARY.index("|")]] * 6
