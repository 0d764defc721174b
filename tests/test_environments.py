"""Environments: other shapes, tools, and the games that come with the library."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

import numpy as np
import pytest

from rlif_lightning.environments import games
from rlif_lightning.environments.adapters import as_environment
from rlif_lightning.environments.base import MAX_CHARACTERS, Episode, Step, Turn, cut
from rlif_lightning.environments.problems import CountdownProblems
from rlif_lightning.environments.tools import PythonTool, ToolCall, parse_tool_calls
from rlif_lightning.sampling import cut_at_stop


class Gymnasium:
    def reset(self, *, seed=None, options=None):
        self.begun = seed, options
        return "first", {"ignored": 1}

    def step(self, action):
        return action.upper(), 0.5, action == "end", action == "late", {"k": 1, "array": [1]}


def test_gymnasium_tuples():
    made = Gymnasium()
    environment = as_environment(made)
    assert environment.reset(seed=3, level=2) == "first"
    assert made.begun == (3, {"level": 2})
    assert environment.step("go") == Step("GO", 0.5, info={"k": 1})
    assert environment.step("end") == Step("", 0.5, done=True, info={"k": 1})
    assert environment.step("late") == Step("", 0.5, truncated=True, info={"k": 1})


def test_a_figure_of_numpy_is_a_figure():
    """Else ``success`` would be left out, and the reward of 1 would say that it is solved."""

    class Game(Gymnasium):
        def step(self, action):
            return "", np.float32(1.0), np.bool_(True), False, {"success": np.bool_(False)}

    step = as_environment(Game()).step("go")
    assert step == Step("", 1.0, done=True, info={"success": False})
    assert type(step.info["success"]) is bool


class TextWorld:
    scores = (1, 2, 2, 3, 5)

    def seed(self, seed):
        self.seeded = seed

    def reset(self):
        self.moves = 0
        return "kitchen", {"won": False}

    def step(self, action):
        self.moves += 1
        return "room", self.scores[self.moves - 1], self.moves == 5, {"won": self.moves == 5}


def test_textworld_scores_are_running_ones():
    made = TextWorld()
    environment = as_environment(made)
    for _ in range(2):  # the second episode begins at 0 again
        assert environment.reset(seed=7, level=2) == "kitchen"
        steps = [environment.step("go") for _ in range(5)]
        assert [step.reward for step in steps] == [1, 1, 0, 1, 2]
        assert [step.done for step in steps] == [False] * 4 + [True]
    assert made.seeded == 7


class Jericho(TextWorld):
    """Pays by the step, and says the score."""

    def step(self, action):
        seen, score, done, info = super().step(action)
        paid = score - (0, *self.scores)[self.moves - 1]
        return seen, paid, done, {**info, "score": np.int64(score)}


def test_a_score_that_is_said_is_the_running_one():
    environment = as_environment(Jericho())
    for _ in range(2):
        environment.reset(seed=7)
        assert [environment.step("go").reward for _ in range(5)] == [1, 1, 0, 1, 2]


class Record(SimpleNamespace):
    def model_dump(self):
        return dict(vars(self))


class OpenEnv:
    """Observations are records whose fields are the environment's own."""

    def reset(self, seed=None, episode_id=None, **others):
        self.others = others
        return Record(board="..X", done=False, reward=None, metadata={})

    def step(self, action):
        seen = Record(board="OXO", turn=2, done=True, reward=1, metadata={})
        return SimpleNamespace(observation=seen, reward=None, done=False, metadata={"m": 2.0})


def test_openenv_objects():
    environment = as_environment(OpenEnv())
    assert environment.reset(seed=1, level=3) == "..X"
    assert environment.step("x") == Step('{"board": "OXO", "turn": 2}', 0.0, info={"m": 2.0})


@pytest.mark.parametrize("seen", [Record(board="..X", done=False), "..X"])
def test_a_first_result_is_read_as_those_of_steps(seen):
    """OpenEnv's clients return a whole result from ``reset``, AgentGym's a dictionary."""
    for first in (
        SimpleNamespace(observation=seen, reward=None, done=False),
        {"observation": seen, "reward": 0.0, "done": False, "id": 7},
    ):
        environment = as_environment(
            SimpleNamespace(reset=lambda it=first: it, step=lambda action, it=first: it)
        )
        assert environment.reset(seed=1) == "..X"
        assert environment.step("x").observation == "..X"


class SkyRL:
    closed, adds = False, ()

    def init(self, prompt):
        """As its base class: what was given."""
        return [*prompt, *self.adds], {}

    def step(self, action):
        seen = [{"role": "user", "content": "next"}]
        return {"observations": seen, "reward": 1.0, "done": False, "metadata": {}}

    def close(self):
        self.closed = True

    def get_metrics(self):
        return {"calls": 1.0}


def test_skyrl_dicts():
    made = SkyRL()
    environment = as_environment(made)
    prompt, more = [{"role": "user", "content": "p"}], {"role": "user", "content": "Go."}
    assert environment.reset(seed=1, prompt=prompt, answer="4") is None  # the policy sees it anyhow
    made.adds = [more]
    assert environment.reset(seed=1, prompt=prompt) == [more]
    made.init = lambda prompt: ([{"role": "user", "content": prompt}], {})
    assert environment.reset(seed=1, prompt="p") is None
    made.init = lambda prompt: ([more], {})
    assert environment.reset(seed=1, prompt="p") == [more]
    assert environment.step("x") == Step([{"role": "user", "content": "next"}], 1.0)
    assert environment.metrics() == {"calls": 1.0}
    environment.close()
    assert made.closed


def test_agentgym_states():
    made = SimpleNamespace(
        reset=lambda idx: None,
        observe=lambda: "seen",
        step=lambda action: SimpleNamespace(state="room", reward=0.25, done=False),
    )
    environment = as_environment(made)
    assert environment.reset(seed=1, idx=4) == "seen"
    assert environment.step("go") == Step("room", 0.25)


class TextArena:
    """Shows everything since it was made; draws from the process's generator."""

    seen = ""

    def reset(self, num_players, seed):
        assert num_players == 1
        random.seed(seed)
        self.seen += "[GAME] rules"

    def get_observation(self):
        return 0, self.seen

    def step(self, action):
        self.seen += f"\n[Player] [{action}]\n[GAME] {random.randint(1, 10**6)}"
        self.won = action == "win"
        return self.won, {}

    def close(self):
        return ({0: 1} if self.won else None), {}


def play(environment, seed, moves=3, between=lambda: None):
    seen = [environment.reset(seed=seed)]
    for _ in range(moves):
        between()
        seen.append(environment.step("a").observation)
    return seen


def test_textarena_shows_what_is_new_and_pays_at_the_end():
    environment = as_environment(TextArena())
    first, *others = play(environment, 3)
    assert first == "[GAME] rules"
    assert all(seen.startswith("[GAME] ") and "\n" not in seen for seen in others)
    last = environment.step("win")
    assert (last.observation, last.reward, last.done) == ("", 1.0, True)
    assert play(environment, 3) == [first, *others]


def test_games_that_share_a_generator_are_those_that_run_alone():
    alone = play(as_environment(TextArena()), 3)
    other = as_environment(TextArena())
    other.reset(seed=4)
    random.seed(99)
    state = random.getstate()
    beside = play(as_environment(TextArena()), 3, between=lambda: other.step("b"))
    assert beside == alone
    assert random.getstate() == state


def test_a_message_without_a_role_is_refused():
    with pytest.raises(TypeError, match="has no role"):
        cut([{"content": "a"}])


def test_what_is_no_environment_is_refused():
    with pytest.raises(TypeError, match="int is no environment: it needs reset"):
        as_environment(3)
    made = SimpleNamespace(reset=lambda: "", step=lambda action: 3)
    with pytest.raises(TypeError, match="of no known shape"):
        as_environment(made).step("a")


class Accounts:
    """A tool class of TRL's shape."""

    def reset(self, balance=0, **row):
        self.balance, self.row = balance, row
        return f"You have {balance}."

    def pay(self, amount: int) -> dict:
        """
        Pay an amount.

        Args:
            amount: How much.
        """
        if amount > self.balance:
            raise ValueError("too little")
        self.balance -= amount
        return {"balance": self.balance}

    def _audit(self):
        raise AssertionError

    def get_reward(self):
        return float(self.balance == 0)


def call(text):
    return f"<tool_call>\n{text}\n</tool_call>"


def test_tool_classes():
    environment = as_environment(Accounts())
    assert [it["function"]["name"] for it in environment.tools] == ["pay"]
    properties = environment.tools[0]["function"]["parameters"]["properties"]
    assert properties == {"amount": {"type": "integer", "description": "How much."}}
    assert environment.reset(seed=1, balance=5, other="x") == "You have 5."
    step = environment.step("Paying. " + call('{"name": "pay", "arguments": {"amount": 2}}') * 2)
    message = {"role": "tool", "name": "pay", "content": '{"balance": 3}'}
    assert step.observation == [message, {**message, "content": '{"balance": 1}'}]
    assert not step.done
    step = environment.step(call('{"name": "pay", "arguments": {"amount": 2}}'))
    assert step.observation[0]["content"] == '{"error": "ValueError: too little"}'
    step = environment.step(call('{"name": "_audit", "arguments": {}}'))
    assert "there is no tool '_audit'; there are pay" in step.observation[0]["content"]
    step = environment.step(call("pay 1"))
    assert "a call must be JSON" in step.observation[0]["content"]
    assert environment.metrics() == {"tools/calls": 5, "tools/unreadable": 1, "tools/failed": 2}
    assert environment.step("I have paid.") == Step(done=True)
    assert environment.get_reward() == 0.0
    environment.reset(balance=0)
    assert environment.get_reward() == 1.0
    assert not any(environment.metrics().values())


def add(a: int, b: int) -> int:
    """
    Add.

    Args:
        a: One.
        b: Other.
    """
    return a + b


def test_plain_functions_are_tools():
    environment = as_environment([add])
    assert environment.reset(seed=1, question="x") is None
    step = environment.step(call('{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}'))
    assert step.observation == [{"role": "tool", "name": "add", "content": "3"}]
    with pytest.raises(ValueError, match=r"tool '<lambda>'.*give it types and a docstring"):
        as_environment([lambda a: a])


def test_calls_are_read_in_every_spelling():
    parsed = parse_tool_calls('<tool_call>{"name": "f", "parameters": {"x": "</b>"}}</tool_call>')
    assert parsed == [ToolCall("f", {"x": "</b>"})]
    assert parse_tool_calls("no call") == []
    faults = [it.fault for it in parse_tool_calls(call('["f"]') + call('{"name": 3}') + call("{}"))]
    assert len(faults) == 3
    assert all("must be JSON" in fault for fault in faults)
    [cut_off] = parse_tool_calls('<tool_call>{"name": "f"')
    assert cut_off.fault == "a call must be closed by </tool_call>"
    assert parse_tool_calls(call("[" * 100_000))[0].fault


def test_a_call_may_be_closed_by_the_stop_string():
    """Which a turn's text is cut before."""
    written = call('{"name": "add", "arguments": {"a": 1}}')
    turn = cut_at_stop(f"I add. {written}", ["</tool_call>"])
    assert parse_tool_calls(turn) == [ToolCall("add", {"a": 1})]


def test_python_runs_in_the_sandbox():
    environment = as_environment(PythonTool())
    assert environment.reset(seed=1) is None
    text = '{"name": "python", "arguments": {"code": "print(6 * 7)"}}'
    assert environment.step(call(text)).observation[0]["content"].strip() == "42"
    text = '{"name": "python", "arguments": {"code": "1 / 0"}}'
    assert "ZeroDivisionError" in environment.step(call(text)).observation[0]["content"]


def test_an_episode_sums_differences():
    episode = Episode((Turn("a", 0.5), Turn("b", 0.25)), "completed", 8, final_reward=1.0)
    assert (episode.reward, episode.is_solved) == (1.75, True)
    said = Episode((Turn("a", 5.0, {"success": 0.0}),), "completed", 8)
    assert not said.is_solved
    unseen = Episode((*said.turns, Turn("cut by a limit")), "max_sampled_tokens", 8)
    assert not unseen.is_solved
    assert Episode((*said.turns, Turn("silent", 1.0)), "completed", 8).is_solved
    failed = Episode((Turn("a", 5.0, {"success": 1.0}),), "environment_error", 8, failure="x")
    assert failed.reward != failed.reward
    assert not failed.is_solved
    assert not Episode((), "max_sampled_tokens", 8).is_solved


def test_huge_observations_are_cut():
    assert cut("a" * MAX_CHARACTERS) == "a" * MAX_CHARACTERS
    seen = cut([{"role": "tool", "content": "a" * (MAX_CHARACTERS + 7)}])[0]["content"]
    assert seen.endswith("a\n[57 more characters]")
    assert len(seen) < MAX_CHARACTERS
    assert cut(seen) == seen


def test_countdown_by_hand():
    game = games.CountdownStepwise()
    assert game.reset(seed=1, numbers=[3, 5, 7, 2], target=29) is None
    assert game.step("MUL 3 7") == Step("2 5 21", info={"action": "MUL", "success": 0.0})
    assert game.step("MUL 3 7").observation == "invalid 2 5 21"  # 3 is used up
    assert game.step("SUB 2 5").observation == "invalid 2 5 21"  # negative
    assert game.step("DIV 21 2").info["action"] == "INVALID"
    assert game.step("MUL 3 7").observation == "invalid 2 5 21"  # repeated
    assert game.step("RESET") == Step("2 3 5 7", info={"action": "RESET", "success": 0.0})
    assert game.step("").info["action"] == "INVALID"
    assert game.step("MUL 3 7").observation == "2 5 21"
    assert game.step("ADD 21 5").observation == "2 26"
    assert game.metrics() == {"invalid": 5 / 9, "repeated": 2 / 9, "reset": 1 / 9}
    game.step("RESET")
    game.step("ADD 5 7")
    game.step("MUL 12 2")
    assert game.step("ADD 24 3").observation == "27"
    game.reset(numbers=[3, 5, 7, 2], target=29)
    game.step("MUL 7 5")
    game.step("SUB 35 3")
    step = game.step("SUB 32 3")
    assert step.info["action"] == "INVALID"  # one 3 alone
    game.reset(numbers=[3, 3, 7, 5], target=29)
    for action in ("MUL 7 5", "SUB 35 3"):
        game.step(action)
    assert game.step("SUB 32 3") == Step("", 1.0, True, info={"action": "SUB", "success": 1.0})


def solve(numbers, target, depth):
    """Whether so many operations reach the target, by trying all."""
    for i, a in enumerate(numbers):
        for j, b in enumerate(numbers):
            if i == j:
                continue
            rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
            for name in games.OPERATIONS:
                made = games.result(name, a, b)
                if made == target or (
                    made is not None and depth > 1 and solve([*rest, made], target, depth - 1)
                ):
                    return True
    return False


def test_countdown_games_need_two_operations_and_have_a_solution():
    problems = CountdownProblems(size=12, validation_size=8)
    rows = problems.load("train")
    assert rows[3] == problems.load("train")[3]
    for row in rows:
        assert not solve(row["numbers"], row["target"], 1)
        assert solve(row["numbers"], row["target"], 3)
    shown = {row["question"] for row in rows}
    assert not shown & {
        *CountdownProblems(size=12, validation_size=8).load("validation")["question"]
    }


def test_a_seeded_countdown_shows_its_game():
    game = games.CountdownStepwise()
    first = game.reset(seed=5)
    assert first == games.CountdownStepwise().reset(seed=5) != game.reset(seed=6)


def test_guess_the_number():
    game = games.GuessTheNumber(20)
    assert game.reset(seed=0) == "1 to 20"
    low, high, turns = 1, 20, 0
    while True:
        guess, turns = (low + high) // 2, turns + 1
        step = game.step(f" {guess} ")
        if step.done:
            break
        low, high = (guess + 1, high) if step.observation == "higher" else (low, guess - 1)
    assert (step.reward, turns <= 5) == (1.0, True)
    assert game.step("seven").info["action"] == "INVALID"


def test_a_grid_has_a_way_and_holes():
    game = games.GridWalk(side=3, holes=2)
    ends = set()
    for seed in range(30):
        assert game.reset(seed=seed).count("O") == 2
        for word in ("right", "right", "down", "down"):
            step = game.step(word)
            if step.done:
                ends.add(step.reward)
                break
    assert ends == {0.0, 1.0}
    game.reset(seed=1)
    before = game.place
    assert not game.step("up").done
    assert game.place == before  # a wall
    assert game.step("fly").info["action"] == "INVALID"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Mastermind-v0", "TowerOfHanoi-v0", "FrozenLake-v0"])
def test_games_of_textarena(name):
    textarena = pytest.importorskip("textarena")
    environment = as_environment(textarena.make(name))
    first = environment.reset(seed=3)
    assert len(first) > 100
    step = environment.step("[1 2 3 4]")
    assert step.observation
    assert first not in step.observation
    again = as_environment(textarena.make(name))
    assert again.reset(seed=3) == first
    assert environment.reset(seed=3) == first


def test_a_tool_may_be_a_coroutine_function():
    """Its result is what the policy reads, and not the text of an object that nobody awaits."""

    class Tools:
        def reset(self, **row):
            self.asked = []

        async def double(self, n: int) -> int:
            """
            Double a number.

            Args:
                n: The number.
            """
            await asyncio.sleep(0)
            if n < 0:
                raise ValueError("too small")
            self.asked.append(n)
            return 2 * n

    made = Tools()
    environment = as_environment(made)
    environment.reset(seed=1)
    call = '<tool_call>{{"name": "double", "arguments": {{"n": {}}}}}</tool_call>'
    assert environment.step(call.format(4)).observation[0]["content"] == "8"
    said = environment.step(call.format(-1)).observation[0]["content"]
    assert said == '{"error": "ValueError: too small"}'
    assert made.asked == [4]
    assert environment.metrics()["tools/failed"] == 1
