"""What docs/environments.md prints runs as it stands there."""

from __future__ import annotations

import re
import sys

import pytest

from harness.environments import all_of
from harness.files import ROOT
from harness.runs import fit
from rlif_lightning.environments.pool import EnvironmentPool

PAGE = (ROOT / "docs" / "environments.md").read_text()
OWN, TOOLS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
[SETTINGS] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def my_file(tmp_path, monkeypatch):
    """A file of that name, with both programs of the page, in the current folder."""
    (tmp_path / "my_file.py").write_text(OWN + TOOLS)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_file", None)


def test_an_environment_of_one_s_own_has_twenty_lines_and_trains(my_file):
    assert len([line for line in OWN.splitlines() if line.strip()]) <= 20
    (my_file / "mine.yaml").write_text(SETTINGS)
    tokens = "--model.sampling.max_new_tokens=12"
    run = fit(my_file, f"--config={my_file / 'mine.yaml'}", tokens, "--trainer.max_steps=1")
    figures = run.trainer.callback_metrics
    assert float(figures["episode/turns"]) > 1
    assert 0 <= float(figures["environment/solved"]) <= 1
    assert "reward/game/mean" in figures
    with EnvironmentPool("my_file.GuessTheNumber", {"largest": 3}) as pool:
        pool.start(0, 7, {"question": "ignored"})
        said = [all_of(pool, [0])[0].observation]
        for guess in ("one", "1", "2"):
            pool.act(0, guess)
            said.append(all_of(pool, [0])[0])
    assert said[0] == "1 to 3"  # 7 % 3 = 1, so that 2 is hidden
    assert [answer.observation for answer in said[1:]] == ["a number, please", "higher", ""]
    assert said[-1].episode.reward == 1.0


def test_trl_s_tools_run_as_they_are(my_file):
    def call(name, arguments):
        return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'

    with EnvironmentPool("my_file.Accounts") as pool:
        assert [tool["function"]["name"] for tool in pool.tools] == ["pay"]
        pool.start(0, 1, {"balance": 5, "question": "Pay all."})
        assert all_of(pool, [0])[0].observation == "You have 5."
        pool.act(0, call("pay", '{"amount": 5}'))
        [message] = all_of(pool, [0])[0].observation
        assert message == {"role": "tool", "name": "pay", "content": '{"balance": 0}'}
        pool.act(0, "All is paid.")
        assert all_of(pool, [0])[0].episode.reward == 1.0
    with EnvironmentPool("my_file.tools") as pool:
        pool.start(0, 1, {})
        all_of(pool, [0])
        pool.act(0, call("add", '{"a": 1, "b": 2}'))
        assert all_of(pool, [0])[0].observation[0]["content"] == "3"
