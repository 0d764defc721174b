"""The vLLM engine.

What needs vLLM itself is skipped where it is not installed (docs/vllm.md says how to).
"""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.command_line import build
from harness.decoding import completions, rescored
from harness.runs import fit, metrics, parameters
from harness.vllm_runs import GROUP, INSTALLED, PLAIN, changed, gap_of, prompts_of, vllm_test
from rlif_lightning.model.loading import LoRA, Policy
from rlif_lightning.model.policy import PolicyModel
from rlif_lightning.records import Prompts, TokenStats
from rlif_lightning.rollout.native import NativeEngine
from rlif_lightning.rollout.vllm_engine import VLLMEngine, VLLMServerEngine
from rlif_lightning.rollout.vllm_weights import fingerprint
from rlif_lightning.sampling import Sampling

OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "enable_chunked_prefill": False,
    "max_num_seqs": 16,
    "kv_cache_memory_bytes": 2**26,
    "block_size": 32,
}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"options": {"logprobs_mode": "raw_logprobs"}},
            r"\['logprobs_mode'\] are decided by the engine",
        ),
        ({"max_ratio": 0.5}, "max_ratio=0.5 must be at least 1"),
        ({"max_gap": 0.0}, "max_gap=0.0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        VLLMEngine(**settings)


def engine_for(policy: PolicyModel, **settings) -> VLLMEngine:
    engine = VLLMEngine(**settings)
    engine.setup(policy, 7)
    return engine


def test_a_request_has_the_sampling_and_draws_greedy_once():
    engine = engine_for(PolicyModel(Policy("rlif-arithmetic")))
    hot = Sampling(temperature=0.7, max_new_tokens=9, min_new_tokens=2, top_k=5, top_p=0.9)
    request = engine.request(hot, 8, seed=11)
    expected = {
        "n": 8,
        "seed": 11,
        "temperature": 0.7,
        "max_tokens": 9,
        "min_tokens": 2,
        "top_k": 5,
        "top_p": 0.9,
    }
    assert request.items() >= expected.items()
    assert request["stop_token_ids"] == engine.policy.eos_ids
    assert (
        request.items() >= {"min_p": 0.0, "repetition_penalty": 1.0}.items()
    )  # not the generation config's
    # vLLM looks for stop strings in a text without special tokens otherwise, and passes <|im_end|>.
    assert request["skip_special_tokens"] is False
    assert engine.request(Sampling(temperature=0), 8, 0)["n"] == 1


def test_vllm_reads_the_policy_s_revision():
    policy = PolicyModel(Policy("rlif-arithmetic"))
    policy.settings = replace(policy.settings, revision="next", trust_remote_code=True)
    engine = VLLMEngine({"dtype": "float32", "tokenizer_revision": "other"})
    engine.setup(policy, 0)
    expected = {
        "revision": "next",
        "tokenizer_revision": "other",
        "trust_remote_code": True,
        "dtype": "float32",
    }
    assert engine.local_options() == expected


def test_what_vllm_would_cut_or_do_otherwise_is_refused():
    prompts = prompts_of(PolicyModel(Policy("rlif-arithmetic")))
    with pytest.raises(
        ValueError, match=r"max_model_len=29 is less than .*max_new_tokens=24 together, 30"
    ):
        VLLMEngine._check_length(prompts, PLAIN, 29)
    with pytest.raises(ValueError, match="does not look for stop strings"):
        VLLMEngine().check(Sampling(min_new_tokens=3, stop=["#"]))
    VLLMEngine._check_length(prompts, PLAIN, 30)


@pytest.mark.parametrize("name", ["vllm", "vllm_cpu"])
def test_overlays_are_built_by_the_command_line(monkeypatch, name):
    monkeypatch.chdir(Path(__file__).parents[1])
    run = build(["--config=configs/quickstart.yaml", f"--config=configs/engine/{name}.yaml"])
    assert isinstance(run.model.engine, VLLMEngine)
    assert run.model.engine.max_ratio == 2.0
    assert run.model.engine.options["max_model_len"] in (512, 4096)


@pytest.mark.skipif(INSTALLED, reason="vllm is installed")
def test_without_the_package_the_command_line_names_it(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, "--model.engine=VLLMEngine")
    assert stopped.value.code == 2
    assert 'pip install "rlif-lightning[vllm]"' in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=r"needs the package vllm: .*or sample with --config .*native\.yaml"
    ):
        VLLMEngine().check(PLAIN)  # in setup: before a model is loaded


def test_several_processes_are_told_to_share_a_server_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr("rlif_lightning.rollout.vllm_engine.num_processes", lambda: 2)
    with pytest.raises(
        ValueError, match=r"works in one process.*vllm_server\.yaml .*--trainer\.devices=1"
    ):
        VLLMEngine().check(PLAIN)
    with pytest.raises(
        ValueError, match=r"does not work under tensor parallelism"
    ):  # rows of one rank, two processes
        VLLMServerEngine("http://localhost:8000", "w").check(PLAIN)


@pytest.mark.skipif(INSTALLED, reason="vllm is installed")
def test_what_vllm_refuses_is_one_line(tmp_path, capsys, monkeypatch):
    """In vLLM's place a module whose LLM refuses as pydantic does, in many lines."""

    def refuse(**arguments):
        raise ValueError(
            "1 validation error for ModelConfig\n  max_model_len (4096) is greater than 128"
        )

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=refuse))
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, "--config=configs/engine/vllm.yaml")
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "'max_model_len': 4096" in line
    assert line.endswith(
        "1 validation error for ModelConfig max_model_len (4096) is greater than 128"
    )


# With vLLM. One engine for all tests: its weights always come from the policy that it is set up
# with.


@pytest.fixture(scope="module")
def local():
    return VLLMEngine(options=OPTIONS, max_gap=1e-3)


@vllm_test
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_it_samples_the_present_weights(local, lora, temperature):
    policy = changed(lora=LoRA(rank=4, alpha=8) if lora else None)
    sampling = Sampling(temperature=temperature, max_new_tokens=24, min_new_tokens=3)
    local.setup(policy, 7)
    for _ in range(3):
        rollout = local.generate(prompts_of(policy), GROUP, sampling, 0)
        assert gap_of(rollout) < 1e-3
        scored = rescored(policy, rollout, sampling)
        for field in fields(TokenStats):
            found, expected = (getattr(stats, field.name) for stats in (rollout.stats, scored))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.requires_grad and parameter.dim() == 2:
                    parameter.mul_(1.1)


@vllm_test
def test_stale_weights_stop_the_run(local):
    policy = changed()
    local.setup(policy, 7)
    assert local.synchronize()
    assert not local.synchronize()
    local.generate(prompts_of(policy), GROUP, PLAIN, 0)
    with torch.no_grad():
        policy.causal_lm.get_output_embeddings().weight.mul_(1.3)
    local.loaded = fingerprint(policy)  # as if they had been handed over
    with pytest.raises(RuntimeError, match=r"differ from the policy's by .* \(max_gap=0\.001\)"):
        local.generate(prompts_of(policy), GROUP, PLAIN, 0)
    local.loaded = None
    local.generate(prompts_of(policy), GROUP, PLAIN, 0)


@vllm_test
def test_completions_repeat_with_the_seed_step_and_row(local):
    policy = changed(scale=0.2)
    local.setup(policy, 7)
    prompts = prompts_of(policy)
    first = completions(local.generate(prompts, GROUP, PLAIN, 0))
    assert completions(local.generate(prompts, GROUP, PLAIN, 0)) == first
    assert completions(local.generate(prompts, GROUP, PLAIN, 1)) != first
    assert len({tuple(ids) for ids in first}) > GROUP
    again = Prompts(
        list(reversed(prompts.token_ids)), list(reversed(prompts.texts)), {}, prompts.index.flip(0)
    )
    assert completions(local.generate(again, GROUP, PLAIN, 0))[:GROUP] == first[-GROUP:]


@vllm_test
def test_the_processes_generators_are_left_alone(local):
    policy = changed()
    local.setup(policy, 7)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    local.generate(prompts_of(policy), GROUP, PLAIN, 0)
    assert torch.equal(torch.rand(3), expected)


@vllm_test
def test_greedy_is_the_native_engines(local):
    policy = changed(scale=0.0)
    greedy = Sampling(temperature=0, max_new_tokens=24)
    native = NativeEngine()
    for engine in (local, native):
        engine.setup(policy, 7)
    left, right = (engine.generate(prompts_of(policy), 2, greedy, 0) for engine in (local, native))
    assert completions(left) == completions(right)
    assert left.texts == right.texts
    assert left.ended.tolist() == right.ended.tolist()


@vllm_test
def test_endings_are_the_native_engines(local):
    policy = changed(scale=0.2)
    policy.eos_ids = list(range(2, 20))  # many tokens end a completion
    local.setup(policy, 7)
    rollout = local.generate(
        prompts_of(policy), 8, Sampling(max_new_tokens=24, min_new_tokens=3), 0
    )
    assert int(rollout.ended.sum()) > 0
    assert rollout.lengths.min() == 4
    for ids, ended in zip(completions(rollout), rollout.ended.tolist(), strict=True):
        assert (ids[-1] in policy.eos_ids) == ended
        assert ended or len(ids) == 24
        assert not set(ids[:-1]) & set(policy.eos_ids)


@vllm_test
@pytest.mark.parametrize("stop", [["=", "+"], ["7"]])
def test_a_stop_string_ends_a_completion_and_is_cut_from_its_text(local, stop):
    policy = changed(scale=0.2)
    local.setup(policy, 7)
    rollout = local.generate(prompts_of(policy), 8, Sampling(max_new_tokens=24, stop=stop), 0)
    stopped = 0
    for ids, text, ended in zip(
        completions(rollout), rollout.texts, rollout.ended.tolist(), strict=True
    ):
        whole = policy.tokenizer.decode(ids, skip_special_tokens=True)
        assert not any(
            s in policy.tokenizer.decode(ids[:-1], skip_special_tokens=True) for s in stop
        )
        cuts = [whole.find(string) for string in stop if string in whole]
        assert text == (whole[: min(cuts)] if cuts else whole)
        assert ended == (bool(cuts) or ids[-1] in policy.eos_ids)
        stopped += bool(cuts)
    assert stopped


@vllm_test
def test_the_command_line_trains_with_it(tmp_path):
    options = {**OPTIONS, "max_model_len": 128}
    arguments = [
        "--model.engine=VLLMEngine",
        f"--model.engine.options={options}",
        "--model.engine.max_gap=0.01",
    ]
    runs = []
    for number in (0, 1):
        runs.append(fit(tmp_path / str(number), *arguments))
        rows = [row for row in metrics(tmp_path / str(number)) if row["rollout/engine_gap"]]
        assert len(rows) == 2
        assert all(0 < float(row["rollout/engine_gap"]) < 1e-3 for row in rows)
    left, right = (parameters(run) for run in runs)
    assert all(torch.equal(value, right[name]) for name, value in left.items())


@vllm_test
def test_keys_of_old_weights_are_forgotten(local):
    """A prompt longer than vLLM's block, so that its keys are cached."""
    policy = changed(scale=0.0)
    local.setup(policy, 7)
    long = prompts_of(policy, ("+".join(str(n) for n in range(10, 35)) + "=",))
    sampling = Sampling(max_new_tokens=4)
    local.generate(long, GROUP, sampling, 0)
    assert local.sampler.llm.llm_engine.vllm_config.cache_config.block_size < len(long.token_ids[0])
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.2)
    assert gap_of(local.generate(long, GROUP, sampling, 0)) < 1e-3
