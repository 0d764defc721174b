"""The vLLM server's client.

The same tests run against vLLM (where it is installed) and against a stand-in everywhere.

The stand-in is a real HTTP server whose sampler is the native engine (tests/stand_in_server.py).
"""

from __future__ import annotations

import copy
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from benchmarks.ranks import free_port
from harness.command_line import build
from harness.decoding import completions
from harness.launches import BASE as TWO_ROLLOUTS
from harness.launches import assert_same_metrics, assert_same_weights, both_end, launch, on, weights
from harness.launches import metrics as logged
from harness.runs import fit, marked, metrics
from harness.stand_in_server import HANG_SECONDS, StandIn, Worker, stand_in
from harness.vllm_runs import GROUP, PLAIN, changed, gap_of, prompts_of, vllm_test, with_vllm
from rlif_lightning.model.loading import LoRA, Policy, resolve_model
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.rollout.vllm_engine import VLLMServerEngine
from rlif_lightning.rollout.vllm_local import ENVIRONMENT, WORKER
from rlif_lightning.rollout.vllm_server import VLLMServer
from rlif_lightning.rollout.vllm_weights import fingerprint, merged_weights
from rlif_lightning.rollout.vllm_worker import NO_WEIGHTS, RELOADING
from rlif_lightning.sampling import Sampling

CONFIG = PolicyModel(Policy("rlif-arithmetic")).causal_lm.config
REQUEST = {
    "n": 2,
    "seed": 5,
    "temperature": 1.0,
    "max_tokens": 4,
    "min_tokens": 0,
    "stop": [],
    "stop_token_ids": [2],
}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"server": "127.0.0.1:8000"}, r"server='127.0.0.1:8000' must be a URL, http://host:port"),
        ({"server": "http://"}, "must be a URL"),
        ({"timeout": 0.0}, "timeout=0.0 must be positive"),
        (
            {"key_variable": "sk-12"},
            "key_variable must be the name of an environment variable, and not the key",
        ),
        ({"max_ratio": 0.5}, "max_ratio=0.5 must be at least 1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        VLLMServerEngine(**{"server": "http://localhost:8000", "weights_folder": "w", **settings})


def test_the_overlay_is_built_by_the_command_line(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    run = build(["--config=configs/quickstart.yaml", "--config=configs/engine/vllm_server.yaml"])
    assert isinstance(run.model.engine, VLLMServerEngine)
    assert run.model.engine.server == "http://127.0.0.1:8000"


# The protocol, against the stand-in: what is asked, and what is said when an answer is not as it
# should be.


@pytest.fixture
def standing():
    with stand_in() as server:
        yield server


def client(server: StandIn, folder: Path, timeout: float = HANG_SECONDS) -> VLLMServer:
    return VLLMServer(server.url + "/", str(folder), timeout, CONFIG)


def test_a_server_that_is_not_there_is_named(tmp_path):
    port = free_port()
    with pytest.raises(
        RuntimeError, match=rf"http://127\.0\.0\.1:{port} cannot be reached \(/collective_rpc\)"
    ):
        VLLMServer(f"http://127.0.0.1:{port}", str(tmp_path), HANG_SECONDS, CONFIG)


NOT_IMPLEMENTED = {
    "error": {"message": "Call to collective_rpc method failed: Method 'policy_facts' is missing."}
}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (404, {"detail": "Not Found"}),
            r"without VLLM_SERVER_DEV_MODE=1 .*docs/vllm.md .*404 to /collective_rpc",
        ),
        ((500, NOT_IMPLEMENTED), r"without our worker extension.*Method 'policy_facts' is missing"),
        ((501, b"<html>Unsupported method</html>"), r"501 to /collective_rpc: <html>Unsupported"),
    ],
)
def test_a_server_that_was_started_otherwise_is_refused_with_the_remedy(
    standing, tmp_path, answer, message
):
    standing.answers["/collective_rpc"] = [answer]
    with pytest.raises(ValueError, match=rf"server={standing.url} was started .*{message}"):
        client(standing, tmp_path)


def test_other_log_probs_are_refused(standing, tmp_path):
    standing.worker.model_runner.model_config.logprobs_mode = "raw_logprobs"
    with pytest.raises(ValueError, match=r"raw_logprobs, .*--logprobs-mode processed_logprobs"):
        client(standing, tmp_path)


def test_an_answer_that_is_no_json_is_named(standing, tmp_path):
    standing.answers["/collective_rpc"] = [(200, b"<html>")]
    with pytest.raises(
        RuntimeError, match="answered /collective_rpc with something else than JSON"
    ):
        client(standing, tmp_path)


def test_weights_go_through_a_file(standing, tmp_path):
    """Read by the extension; gone afterwards; in the server's precision; keys forgotten, also at a
    second try.
    """
    policy, seen = changed(), {}
    folder = tmp_path / "not there yet"
    load = standing.worker.load_policy_file

    def look(path, policy_id):
        with safe_open(path, "pt") as file:
            seen.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a dict
        assert [each.name for each in folder.iterdir()] == ["policy.safetensors"]
        load(path, policy_id)

    standing.worker.load_policy_file = look
    standing.worker.model_runner.model_config.dtype = torch.bfloat16
    standing.answers["/reset_prefix_cache"] = [(200, {"success": False})]
    server = client(standing, folder)
    server.load(merged_weights(policy))
    expected = dict(merged_weights(policy))
    assert seen.keys() == expected.keys()
    assert all(torch.equal(value, expected[name].bfloat16()) for name, value in seen.items())
    assert [path for path, _ in standing.asked].count("/reset_prefix_cache") == 2
    assert not list(folder.iterdir())
    assert standing.worker.policy_id == server.policy_id != ""


def test_a_file_that_the_server_does_not_see_is_named(standing, tmp_path):
    """Another run's, or none: the worker's own refusal comes through, with the path."""
    server, worker = client(standing, tmp_path), standing.worker
    load = worker.load_policy_file
    worker.load_policy_file = lambda path, policy_id: load(path, "another")
    with pytest.raises(
        RuntimeError,
        match=r"instead of another; the file was .*policy.safetensors, which the server",
    ):
        server.load(merged_weights(changed()))
    worker.load_policy_file = lambda path, policy_id: load(path + "x", policy_id)
    with pytest.raises(RuntimeError, match=r"no such file on the server's side; the file was "):
        server.load(merged_weights(changed()))
    assert worker.policy_id == ""


def test_half_loaded_weights_have_no_id(standing, tmp_path):
    server, worker = client(standing, tmp_path), standing.worker
    server.load(merged_weights(changed()))
    assert worker.policy_id
    worker.reload_weights = lambda weights_iterator: next(weights_iterator)[0].missing
    with pytest.raises(RuntimeError, match="has no attribute 'missing'"):
        server.load(merged_weights(changed()))
    assert worker.policy_id == ""


def test_weights_that_the_model_does_not_take_are_refused(standing, tmp_path):
    """It reads them, or not, and keeps what it had."""
    server, worker, policy = client(standing, tmp_path), standing.worker, changed()
    server.load(merged_weights(policy))
    for reload in (lambda weights_iterator: None, lambda weights_iterator: list(weights_iterator)):
        worker.reload_weights = reload
        server.load(merged_weights(policy))  # the same ones change nothing
        with pytest.raises(RuntimeError, match="the model kept its weights: other ones were given"):
            server.load(merged_weights(changed(scale=0.1)))
        assert worker.policy_id == ""
        with pytest.raises(RuntimeError, match="the model kept its weights"):
            server.load(merged_weights(policy))


def test_weights_that_cannot_all_be_seen_are_not_judged(standing, tmp_path):
    """As where vLLM keeps a packed copy of a weight alone, or this worker has a part of it."""
    server, worker = client(standing, tmp_path), standing.worker
    real = worker.policy.causal_lm
    worker.model_runner.get_model = lambda: real.model.norm
    worker.reload_weights = lambda weights_iterator: None
    server.load(merged_weights(changed()))
    server.load(merged_weights(changed(scale=0.1)))


def test_warnings_of_layers_that_have_no_weights_are_not_told(standing, tmp_path, caplog):
    """vLLM warns of every class that got none; rotary angles and a tied head have none of their
    own.
    """
    server, worker = client(standing, tmp_path), standing.worker
    reload, model = worker.reload_weights, worker.policy.causal_lm
    model.get_output_embeddings().__class__ = type("TiedHead", (torch.nn.Linear,), {})

    def warn(weights_iterator):
        reload(weights_iterator)
        for module in (
            "LlamaRotaryEmbedding",
            "TiedHead",
            "LlamaRMSNorm",
            "Linear",
            "OfAnotherModel",
        ):
            logging.getLogger(RELOADING).warning(NO_WEIGHTS, module)
        logging.getLogger(RELOADING).warning("%s: another warning", "LlamaRotaryEmbedding")

    worker.reload_weights = warn
    server.load(merged_weights(changed()))
    told = [record.getMessage() for record in caplog.records if record.name == RELOADING]
    failed = [
        f"{name}: Failed to load weights" for name in ("LlamaRMSNorm", "Linear", "OfAnotherModel")
    ]
    assert told == [*failed, "LlamaRotaryEmbedding: another warning"]
    assert not logging.getLogger(RELOADING).filters


def test_a_folder_that_cannot_be_written_is_named(standing, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RuntimeError, match=r"weights_folder=.*/file: the weights cannot be written"
    ):
        client(standing, tmp_path / "file").load(merged_weights(changed()))


def test_keys_that_are_kept_stop_the_run(standing, tmp_path, monkeypatch):
    monkeypatch.setattr("rlif_lightning.rollout.vllm_server.RESET_SECONDS", 0.2)
    standing.answers["/reset_prefix_cache"] = [(200, {"success": False})] * 100
    with pytest.raises(RuntimeError, match="keeps the keys and values of old weights"):
        client(standing, tmp_path).load(merged_weights(changed()))


def choice(index: int, ids: list[int], reason: str) -> dict:
    return {
        "index": index,
        "token_ids": ids,
        "logprobs": {"token_logprobs": [-0.5] * len(ids)},
        "finish_reason": reason,
    }


def test_token_ids_go_out_and_come_back_in_order(standing, tmp_path):
    server = client(standing, tmp_path)
    standing.answers["/v1/completions"] = [
        (200, {"choices": [choice(1, [7, 2], "stop"), choice(0, [3] * 4, "length")]})
    ]
    (group,) = server.generate([[4, 5]], [REQUEST])
    assert [(list(each.ids), each.ended) for each in group] == [([3] * 4, False), ([7, 2], True)]
    assert list(group[1].logprobs) == [-0.5, -0.5]
    path, body = standing.asked[-2]
    assert path == "/v1/completions"
    assert body == {
        "prompt": [4, 5],
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        **REQUEST,
    }


@pytest.mark.parametrize(("ids", "reason"), [([3], "length"), ([3] * 4, "abort")])
def test_completions_that_were_cut_are_refused(standing, tmp_path, ids, reason):
    server = client(standing, tmp_path)
    standing.answers["/v1/completions"] = [
        (200, {"choices": [choice(0, [2], "stop"), choice(1, ids, reason)]})
    ]
    with pytest.raises(
        RuntimeError,
        match=rf"after {len(ids)} of 4 tokens \({reason}\); .*--generation-config vllm",
    ):
        server.generate([[4, 5]], [REQUEST])


def test_missing_completions_are_refused(standing, tmp_path):
    server = client(standing, tmp_path)
    standing.answers["/v1/completions"] = [(200, {"choices": [choice(0, [3, 2], "stop")]})]
    with pytest.raises(RuntimeError, match="gave 1 of 2 completions"):
        server.generate([[4, 5]], [REQUEST])


def test_a_request_that_is_refused_is_told(standing, tmp_path):
    server = client(standing, tmp_path)
    standing.answers["/v1/completions"] = [
        (400, {"error": {"message": "min_tokens must be positive"}})
    ]
    with pytest.raises(
        RuntimeError, match=r"answered 400 to /v1/completions: min_tokens must be positive"
    ):
        server.generate([[4, 5]], [REQUEST])


def test_the_key_comes_from_the_environment_and_is_never_told(standing, tmp_path, monkeypatch):
    standing.key = "sesame-7"
    keyed = partial(VLLMServer, standing.url, str(tmp_path), HANG_SECONDS, CONFIG)
    monkeypatch.setenv("SERVER_KEY", "sesame-7")
    policy = changed(scale=0.0)
    engine = engine_of(standing, tmp_path, key_variable="SERVER_KEY")
    engine.setup(policy, 7)
    assert gap_of(engine.generate(prompts_of(policy), GROUP, PLAIN, 0)) < 1e-3
    with pytest.raises(
        RuntimeError,
        match=r"401 to /v1/completions: it wants an API key; .* model.engine.key_variable",
    ):
        keyed().generate([[4, 5]], [REQUEST])
    monkeypatch.setenv("SERVER_KEY", "not-this-one")
    with pytest.raises(
        RuntimeError, match=r"does not take the API key in the environment variable SERVER_KEY"
    ) as told:
        keyed("SERVER_KEY").generate([[4, 5]], [REQUEST])
    assert "not-this-one" not in str(told.value)
    assert "\n" not in str(told.value)
    standing.answers["/collective_rpc"] = [(401, {"error": "Unauthorized"})]
    with pytest.raises(RuntimeError, match=r"401 to /collective_rpc: .*SERVER_KEY"):
        keyed("SERVER_KEY")
    for value, said in (("", "is not set"), ("a\nb", "printable ASCII")):
        monkeypatch.setenv("SERVER_KEY", value)
        with pytest.raises(
            ValueError, match=f"key_variable=SERVER_KEY: this environment variable .*{said}"
        ):
            keyed("SERVER_KEY")


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/completions", "/collective_rpc"])
def test_a_server_that_does_not_answer_is_left_in_time(standing, tmp_path, path):
    server = client(standing, tmp_path)
    server.client.timeout = 1.0
    standing.hang.add(path)
    if path != "/v1/completions":  # nothing is computed within that second
        drawn = {"choices": [choice(0, [7, 2], "stop"), choice(1, [7, 2], "stop")]}
        standing.answers["/v1/completions"] = [(200, drawn)] * 3
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=rf"did not answer {path} within timeout=1 seconds"):
        server.generate([[4, 5]] * 3, [REQUEST] * 3)
    assert time.monotonic() - started < HANG_SECONDS / 10


@pytest.mark.slow
def test_the_time_out_grows_with_the_tokens(standing, tmp_path):
    """3 requests of 2 completions of 4 tokens at 0.05 s: 1.2 s more than the half second for an
    answer of none.
    """
    server = VLLMServer(standing.url, str(tmp_path), HANG_SECONDS, CONFIG, timeout_per_token=0.05)
    server.client.timeout = 0.5
    standing.hang.add("/v1/completions")
    said = (
        r"did not answer /v1/completions within 1\.7 seconds \(timeout=0\.5 \+"
        r" 0\.05 for each of 24 tokens\); .* if it is slow, raise model\.engine\.timeout"
    )
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=said):
        server.generate([[4, 5]] * 3, [REQUEST] * 3)
    assert 1.6 < time.monotonic() - started < HANG_SECONDS / 10
    standing.hang = {"/collective_rpc"}
    with pytest.raises(
        RuntimeError, match=r"did not answer /collective_rpc within timeout=0.5 seconds; "
    ):
        server.load(merged_weights(changed()))


def test_the_paper_recipe_waits_for_a_slow_server(standing, tmp_path):
    """882 x 7 completions of 3072 tokens: a fixed 600 s gives up a server of fewer than 31,600
    tokens a second.
    """
    engine = VLLMServerEngine(standing.url, str(tmp_path))
    engine.setup(changed(scale=0.0), 7)
    server = engine._start()
    deadline = server.client.within(882 * 7 * 3072)
    assert deadline.left == pytest.approx(600 + 0.001 * 882 * 7 * 3072, abs=60)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_server_that_dies_in_the_middle_is_told(standing, tmp_path, share):
    server = client(standing, tmp_path)
    standing.dies["/v1/completions"] = share
    with pytest.raises(
        RuntimeError, match=r"went away while it answered /v1/completions; .*--ckpt_path=auto"
    ) as told:
        server.generate([[4, 5]] * 3, [REQUEST] * 3)
    assert "\n" not in str(told.value)


def test_an_answer_that_comes_in_drops_is_left_in_time(standing, tmp_path):
    """Each drop comes within the socket's time-out, all of them together take minutes."""
    server = client(standing, tmp_path)
    server.client.timeout = 2.0
    drawn = {"choices": [choice(0, [7, 2], "stop"), choice(1, [7, 2], "stop")]}
    standing.answers["/v1/completions"] = [(200, drawn)]
    standing.pause = 1.0
    started = time.monotonic()
    with pytest.raises(
        RuntimeError, match=r"did not answer /v1/completions within timeout=2 seconds"
    ):
        server.generate([[4, 5]], [REQUEST])
    assert time.monotonic() - started < HANG_SECONDS / 10
    standing.pause = 0.0


# What must hold of any such server: the stand-in, and vLLM itself.


@contextmanager
def vllm_serving(folder: Path, *arguments: str, development: str = "1"):
    """A real server with the embedded model, and its process (the leader of a group)."""
    port = str(free_port())
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        resolve_model("rlif-arithmetic"),
    ]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        port,
        "--dtype",
        "float32",
        "--enforce-eager",
        "--load-format",
        "dummy",
    ]
    command += [
        "--max-num-seqs",
        "64",
        "--kv-cache-memory-bytes",
        str(2**26),
        "--max-model-len",
        "128",
    ]
    command += [
        "--block-size",
        "32",
        "--generation-config",
        "vllm",
        "--no-enable-chunked-prefill",
        *arguments,
    ]
    environment = {**os.environ, **ENVIRONMENT, "VLLM_SERVER_DEV_MODE": development}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    log = folder / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(300):
                assert process.poll() is None, log.read_text()[-3000:]
                try:
                    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                        f"{url}/health", timeout=5
                    ).read()
                    break
                except OSError:
                    time.sleep(1)
            yield SimpleNamespace(url=url, process=process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # with the engine's own process
            process.wait(60)


OURS = ["--logprobs-mode", "processed_logprobs", "--worker-extension-cls", WORKER]


@pytest.fixture(scope="module", params=["stand-in", pytest.param("vllm", marks=with_vllm)])
def served(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    with stand_in() if request.param == "stand-in" else vllm_serving(folder, *OURS) as server:
        yield server


def engine_of(served, folder: Path, **settings) -> VLLMServerEngine:
    return VLLMServerEngine(
        served.url, str(folder), **{"timeout": HANG_SECONDS, "max_gap": 1e-3, **settings}
    )


@pytest.mark.slow
@pytest.mark.parametrize("lora", [pytest.param(False, marks=pytest.mark.full), True])
def test_it_samples_the_present_weights(served, tmp_path, lora):
    policy = changed(lora=LoRA(rank=4, alpha=8) if lora else None)
    engine = engine_of(served, tmp_path)
    engine.setup(policy, 7)
    for step in range(2):
        rollout = engine.generate(
            prompts_of(policy), GROUP, Sampling(temperature=0.7, max_new_tokens=24), step
        )
        assert gap_of(rollout) < 1e-3
        assert not engine.synchronize()
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.requires_grad and parameter.dim() == 2:
                    parameter.mul_(1.1)


def test_stale_weights_stop_the_run(served, tmp_path):
    policy = changed()
    engine = engine_of(served, tmp_path)
    engine.setup(policy, 7)
    engine.generate(prompts_of(policy), GROUP, PLAIN, 0)
    with torch.no_grad():
        policy.causal_lm.get_output_embeddings().weight.mul_(1.3)
    engine.loaded = fingerprint(policy)  # as if they had been handed over
    with pytest.raises(RuntimeError, match=r"differ from the policy's by .* \(max_gap=0\.001\)"):
        engine.generate(prompts_of(policy), GROUP, PLAIN, 0)


def test_keys_of_old_weights_are_forgotten(served, tmp_path):
    """A prompt longer than vLLM's block, so that its keys are cached."""
    policy = changed(scale=0.0)
    engine = engine_of(served, tmp_path)
    engine.setup(policy, 7)
    long = prompts_of(policy, ("+".join(str(n) for n in range(10, 35)) + "=",))
    assert len(long.token_ids[0]) > 32
    for _ in range(2):
        assert gap_of(engine.generate(long, GROUP, Sampling(max_new_tokens=4), 0)) < 1e-3
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1.2)


@pytest.mark.slow
def test_endings_and_stop_strings(served, tmp_path):
    policy = changed(scale=0.2)
    policy.eos_ids = list(range(2, 20))  # many tokens end a completion
    engine = engine_of(served, tmp_path)
    engine.setup(policy, 7)
    rollout = engine.generate(
        prompts_of(policy), 8, Sampling(max_new_tokens=24, min_new_tokens=3), 0
    )
    assert rollout.lengths.min() == 4
    for ids, ended in zip(completions(rollout), rollout.ended.tolist(), strict=True):
        assert (ids[-1] in policy.eos_ids) == ended
        assert not set(ids[:-1]) & set(policy.eos_ids)
    rollout = engine.generate(
        prompts_of(policy), 8, Sampling(max_new_tokens=24, stop=["=", "+"]), 0
    )
    wholes = [
        policy.tokenizer.decode(ids, skip_special_tokens=True) for ids in completions(rollout)
    ]
    cut = [whole[-1:] in ("=", "+") for whole in wholes]
    assert any(cut)
    assert rollout.texts == [
        whole[:-1] if stopped else whole for whole, stopped in zip(wholes, cut, strict=True)
    ]


@pytest.mark.full  # test_rescoring.py has the seeds; endings are drawn below
def test_seeds_depend_on_step_and_row_alone(served, tmp_path):
    policy = changed(scale=0.2)
    engine = engine_of(served, tmp_path)
    engine.setup(policy, 7)
    prompts = prompts_of(policy)
    first = completions(engine.generate(prompts, GROUP, PLAIN, 0))
    assert completions(engine.generate(prompts, GROUP, PLAIN, 0)) == first
    assert completions(engine.generate(prompts, GROUP, PLAIN, 1)) != first
    greedy = engine.generate(prompts, 2, Sampling(temperature=0, max_new_tokens=24), 0)
    assert completions(greedy)[0::2] == completions(greedy)[1::2]


def test_a_server_that_another_run_took_stops_the_run(served, tmp_path):
    mine, other = engine_of(served, tmp_path), engine_of(served, tmp_path)
    policy = changed(scale=0.0)
    mine.setup(policy, 7)
    other.setup(policy, 7)
    mine.synchronize()
    other.synchronize()
    with pytest.raises(
        RuntimeError, match=r"no longer has the weights that it was given: .*a server of its own"
    ):
        mine.generate(prompts_of(policy), GROUP, PLAIN, 0)


def test_a_server_of_another_model_is_refused(served, tmp_path, tiny_models):
    engine = engine_of(served, tmp_path)
    engine.setup(PolicyModel(Policy(str(tiny_models["llama"]))), 7)
    with pytest.raises(
        ValueError, match=r"serves another model than the policy: \w+=.* instead of .*--model"
    ):
        engine.synchronize()


@pytest.mark.parametrize("base", [pytest.param(300.0, marks=pytest.mark.full), 10000.0])
def test_a_model_of_the_same_shapes_with_other_settings_is_refused(standing, tmp_path, base):
    """At the default max_gap: a served model whose rotary positions have another base than the
    policy's 1000.
    """
    served, folder = standing.worker.policy.causal_lm, tmp_path / "model"
    served.config.rope_parameters["rope_theta"] = base
    served.save_pretrained(folder)
    standing.worker.policy.tokenizer.save_pretrained(folder)
    with stand_in(str(folder)) as other:
        engine = engine_of(other, tmp_path, max_gap=0.5)
        policy = PolicyModel(Policy("rlif-arithmetic"))
        engine.setup(policy, 7)
        with pytest.raises(
            RuntimeError, match=r"of greedy tokens differ from the policy's by .*rope_theta"
        ):
            engine.generate(prompts_of(policy), GROUP, PLAIN, 0)


def arguments_for(served, folder: Path) -> list[str]:
    settings = {
        "server": served.url,
        "weights_folder": folder / "weights",
        "timeout": HANG_SECONDS,
        "max_gap": 1e-3,
    }
    return [
        "--model.engine=VLLMServerEngine",
        *(f"--model.engine.{name}={value}" for name, value in settings.items()),
    ]


@pytest.mark.full  # stale weights stop a run of the command line: below
def test_the_command_line_trains_with_it(served, tmp_path):
    run = fit(tmp_path, *arguments_for(served, tmp_path), "--model.update.micro_batch_tokens=300")
    assert run.model.engine.scoring_tokens == 300
    rows = [row for row in metrics(tmp_path) if row["rollout/engine_gap"]]
    assert len(rows) == 2
    assert all(0 < float(row["rollout/engine_gap"]) < 1e-3 for row in rows)
    assert not list((tmp_path / "weights").iterdir())


def keep_the_first_weights(worker: Worker) -> None:
    """Every hand-over is taken and its id kept, but completions are drawn with the weights of the
    first one.
    """
    real, reload, first = worker.policy, worker.reload_weights, []

    def load(weights_iterator):
        worker.policy = real
        reload(weights_iterator)
        first.append(copy.deepcopy(real))
        worker.policy = first[0]

    worker.reload_weights = load


@pytest.mark.full  # test_sampler_gap.py; stale weights stop a run: below
def test_a_server_that_keeps_its_first_weights_is_told_in_the_second_rollout(standing, tmp_path):
    """At default settings, whose absolute bound of 0.5 nats would let hundreds of such rollouts
    pass.
    """
    keep_the_first_weights(standing.worker)
    settings = {"server": standing.url, "weights_folder": tmp_path / "weights"}
    arguments = [f"--model.engine.{name}={value}" for name, value in settings.items()]
    with pytest.warns(
        UserWarning,
        match=r"SamplerGap, rollout 2: rollout/engine_gap factor: rollout/engine_gap, .*, is above",
    ):
        fit(tmp_path, "--model.engine=VLLMServerEngine", *arguments)
    gaps = [
        float(row["rollout/engine_gap"]) for row in metrics(tmp_path) if row["rollout/engine_gap"]
    ]
    assert gaps[0] < 1e-5
    assert 1e-3 < gaps[1] < 0.5
    (event,) = marked(tmp_path / "version_0")
    assert event["values"]["metric"] == "rollout/engine_gap"


@pytest.mark.full  # test_asynchronous.py and test_vllm_episodes.py have runs that share one
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_processes_share_a_server(served, tmp_path, strategy):
    """The first hands the weights over, each draws its own; the stand-in's completions are those of
    one process.
    """
    arguments = [*TWO_ROLLOUTS, *arguments_for(served, tmp_path)]
    launch(tmp_path, {"two": [*arguments, *on(strategy, 2)]}, forks=2)
    rows = [row for row in logged(tmp_path, "two") if "rollout/engine_gap" in row]
    assert len(rows) == 2
    assert all(0 < row["rollout/engine_gap_max"] < 1e-3 for row in rows)
    if isinstance(served, StandIn):
        launch(tmp_path, {"one": arguments})
        assert_same_weights(weights(tmp_path, "two"), weights(tmp_path, "one"))
        assert_same_metrics(logged(tmp_path, "two"), logged(tmp_path, "one"))


@pytest.mark.full  # test_sharding.py gathers them; they are handed over: above
def test_sharded_policies_are_handed_over_whole(standing, tmp_path):
    """With adapters, which are merged; and where no process ever holds the whole."""
    arguments = [*TWO_ROLLOUTS, *arguments_for(standing, tmp_path), *on("fsdp2", 2)]
    runs = {
        "adapters": [*arguments, "--model.policy.lora.rank=4", "--model.optimizer.lr=1e-2"],
        "kept": [*arguments, "--trainer.strategy.init_args.keep_sharded=true"],
    }
    launch(tmp_path, runs, forks=2)
    for name in runs:
        rows = [row for row in logged(tmp_path, name) if "rollout/engine_gap" in row]
        assert len(rows) == 2
        assert all(0 < row["rollout/engine_gap_max"] < 1e-3 for row in rows)


NOT_THIS = "400 to /v1/completions: not this one"
FAULTS = {
    "weights": ("the weights cannot be written", "process 0 failed: VLLMError: weights_folder="),
    "request": (NOT_THIS, r"process \d failed: VLLMError: .*" + NOT_THIS),
    "gap": ("differ from the policy's", "differ from the policy's"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",  # how each is found is tested above, in one process
    [pytest.param(name, marks=() if name == "request" else pytest.mark.full) for name in FAULTS],
)
def test_a_failure_of_one_process_ends_all(standing, tmp_path, fault):
    """The first cannot hand weights over; a request of either is refused, or answered from another
    policy.
    """
    arguments = [*TWO_ROLLOUTS, *arguments_for(standing, tmp_path), *on("ddp", 2)]
    if fault == "weights":
        (tmp_path / "weights").write_text("a file, not a folder")
    elif fault == "request":
        standing.answers["/v1/completions"] = [(400, {"error": {"message": "not this one"}})]
    else:
        wrong = [choice(0, [5] * 8, "length")]  # to a prompt of the first, greedy comparison
        standing.answers["/v1/completions"] = [(200, {"choices": wrong})]
    own, others = FAULTS[fault]
    told = both_end(tmp_path, arguments)
    assert any(own in text for text in told)
    assert all(re.search(rf"[Ee]rror: .*({re.escape(own)}|{others})", text) for text in told)


@vllm_test
@pytest.mark.parametrize(
    ("development", "arguments", "message"),
    [
        ("0", OURS, "without VLLM_SERVER_DEV_MODE=1"),
        ("1", OURS[:2], "without our worker extension.*policy_facts"),
        ("1", OURS[2:], "raw_logprobs.*--logprobs-mode processed_logprobs"),
    ],
)
def test_a_real_server_that_was_started_otherwise_is_refused(
    tmp_path, development, arguments, message
):
    with (
        vllm_serving(tmp_path, *arguments, development=development) as server,
        pytest.raises(ValueError, match=message),
    ):
        VLLMServer(server.url, str(tmp_path), 30.0, CONFIG)


@vllm_test
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (signal.SIGSTOP, r"did not answer /v1/completions within timeout=20"),
        (signal.SIGKILL, "cannot be reached|went away"),
    ],
)
def test_a_real_server_that_goes_away_is_told_in_time(tmp_path, monkeypatch, fault, message):
    monkeypatch.setattr("rlif_lightning.rollout.vllm_engine.TIMEOUT_PER_TOKEN", 0.0)
    with vllm_serving(tmp_path, *OURS) as server:
        policy = changed(scale=0.0)
        engine = engine_of(server, tmp_path, timeout=20.0)
        engine.setup(policy, 7)
        engine.synchronize()
        many = prompts_of(policy, tuple(f"{n}+{n + 1}=" for n in range(60)))
        threading.Timer(0.5, lambda: os.killpg(server.process.pid, fault)).start()
        started = time.monotonic()
        with pytest.raises(RuntimeError, match=message):
            engine.generate(many, 16, Sampling(max_new_tokens=64, min_new_tokens=60), 0)
        assert time.monotonic() - started < 30
