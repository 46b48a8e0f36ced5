"""How model.json, config.pbtxt and the environment make a model's engine arguments."""

import dataclasses
import json
import re
from pathlib import Path

import pydantic
import pytest

from vllm_chat import settings
from vllm_chat.errors import SettingsError

REPOSITORY = Path(__file__).parents[2] / "model_repository" / "nemotron"
PROFILES = sorted(path.stem for path in (REPOSITORY / "profiles").glob("*.json"))
SPARK_GB = 128
#: What README adds to weights and cache: Parakeet, Magpie and their runtimes; vLLM with and without CUDA graphs.
SPEECH_GB, VLLM_GB, VLLM_EAGER_GB = 10, 4, 2


@pytest.fixture
def folder(tmp_path):
    version = tmp_path / "1"
    version.mkdir()
    (version / "model.json").write_text(json.dumps({"model": "org/name", "max_model_len": 4096, "max_num_seqs": 8}))
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    for name in ("laptop", "small"):
        (profiles / f"{name}.json").write_text(json.dumps({"model": f"org/{name}", "reasoning_parser": "qwen3"}))
    return version


def resolved(folder, environment, *, on_cpu=False, parameters=None):
    wanted = settings.load(folder, "nemotron", parameters or {}, environment)
    args = settings.resolve(wanted, on_cpu=on_cpu, environment=environment)
    assert args.pop("worker_extension_cls") == settings.LIFELINE
    assert args.pop("disable_log_stats")  # our own logger collects them
    return args


def test_the_environment_wins_over_config_and_config_over_model_json(folder):
    parameters = {"NEMOTRON_MODEL": "org/config", "NEMOTRON_ENGINE_ARGS": '{"max_num_seqs": 2}'}
    assert resolved(folder, {}, parameters=parameters) == {
        "model": "org/config",
        "max_model_len": 4096,
        "max_num_seqs": 2,
    }
    environment = {"NEMOTRON_MODEL": "org/env", "NEMOTRON_ENGINE_ARGS": '{"max_model_len": null, "seed": 3}'}
    assert resolved(folder, environment, parameters=parameters) == {"model": "org/env", "max_num_seqs": 8, "seed": 3}


def test_each_model_has_its_own_prefix(folder):
    assert settings.load(folder, "my-llm.2", {}, {"MY_LLM_2_MODEL": "org/two"}).engine_args["model"] == "org/two"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"NEMOTRON_MODEL": "/no/such/folder"}, "environment variable NEMOTRON_MODEL is /no/such/folder"),
        ({"NEMOTRON_ENGINE_ARGS": "{"}, "environment variable NEMOTRON_ENGINE_ARGS is not valid JSON"),
        ({"NEMOTRON_ENGINE_ARGS": "[1]"}, "NEMOTRON_ENGINE_ARGS must be a JSON object"),
        ({"NEMOTRON_ENGINE_ARGS": '{"model": null}'}, "must name a model"),
        ({"NEMOTRON_ENGINE_ARGS": '{"max_model_length": 1}'}, "no engine argument max_model_length.*max_model_len"),
        ({"NEMOTRON_PROFILE": "spark"}, "NEMOTRON_PROFILE is spark; the profiles are laptop, small, or a path"),
        ({"NEMOTRON_PROFILE": "/no/such.json"}, r"/no/such.json is needed"),
        ({"NEMOTRON_REASONING_PARSER_PLUGIN": "mine.py"}, "reasoning_parser_plugin is .*mine.py, which is not there"),
        ({"NEMOTRON_ENGINE_ARGS": '{"enable_lora": true}'}, r"enable_lora is set, so .*multi_lora.json is needed"),
        ({"NEMOTRON_CHAT_TEMPLATE_KWARGS": "no"}, "NEMOTRON_CHAT_TEMPLATE_KWARGS is not valid JSON"),
    ],
)
def test_a_bad_setting_is_named_with_its_place(folder, environment, message):
    with pytest.raises(SettingsError, match=message):
        resolved(folder, environment)


def test_a_missing_model_json_is_said(tmp_path):
    with pytest.raises(SettingsError, match=r"model\.json is needed"):
        settings.load(tmp_path, "nemotron", {}, {})


def test_on_a_cpu_gpu_memory_arguments_go_unless_asked_for(folder):
    args = {"model": "org/name", "gpu_memory_utilization": 0.5, "kv_cache_memory_bytes": 8 << 30}
    (folder / "model.json").write_text(json.dumps(args))
    on_cpu = resolved(folder, {}, on_cpu=True)
    assert on_cpu == {
        "model": "org/name",
        "enforce_eager": True,
        "kv_cache_memory_bytes": settings.CPU_KV_CACHE_BYTES,
        "max_model_len": settings.FIT_THE_CACHE,
    }
    asked = resolved(folder, {"NEMOTRON_ENGINE_ARGS": '{"kv_cache_memory_bytes": 5}'}, on_cpu=True)
    assert asked["kv_cache_memory_bytes"] == 5
    assert "kv_cache_memory_bytes" not in resolved(folder, {"VLLM_CPU_KVCACHE_SPACE": "2"}, on_cpu=True)
    assert resolved(folder, {}) == args


def test_a_float32_checkpoint_is_not_halved_on_a_cpu(folder, tmp_path):
    (tmp_path / "config.json").write_text('{"torch_dtype": "float32"}')
    environment = {"NEMOTRON_MODEL": str(tmp_path)}
    assert resolved(folder, environment, on_cpu=True)["dtype"] == "float32"
    assert "dtype" not in resolved(folder, environment)


def test_the_shipped_model_json_holds_arguments_that_this_vllm_knows():
    args = resolved(REPOSITORY / "1", {})
    assert args["model"].startswith("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_shipped_profile_holds_what_this_vllm_knows(profile):
    environment = {"NEMOTRON_PROFILE": profile}
    assert "kv_cache_memory_bytes" in resolved(REPOSITORY / "1", environment)
    chat = pytest.importorskip("vllm_chat.chat")
    chat._check_parsers(settings.load(REPOSITORY / "1", "nemotron", {}, environment).parsers)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_shipped_profile_holds_values_of_the_right_types(profile):
    """JSON's true is no number, and "4" is none either: vLLM would take some of these and fail later."""
    arg_utils = pytest.importorskip("vllm.engine.arg_utils")
    kinds = {field.name: field.type for field in dataclasses.fields(arg_utils.AsyncEngineArgs)}
    for name, value in json.loads((REPOSITORY / "profiles" / f"{profile}.json").read_text()).items():
        if name not in settings.PARSER_ARGS:
            kind = eval(kinds[name], vars(arg_utils)) if isinstance(kinds[name], str) else kinds[name]
            pydantic.TypeAdapter(kind).validate_python(value, strict=True)


@pytest.mark.parametrize("profile", PROFILES)
def test_vllm_makes_of_a_shipped_profile_what_it_says(profile, tiny, monkeypatch):
    """vLLM checks the arguments against each other and against a checkpoint; a tiny one, for want of the real."""
    environment = {"NEMOTRON_PROFILE": profile, "NEMOTRON_MODEL": str(tiny.llm)}
    wanted = settings.load(REPOSITORY / "1", "nemotron", {}, environment)
    for name, value in settings.environment_defaults(wanted, on_cpu=True).items():
        monkeypatch.setenv(name, value)
    said = json.loads((REPOSITORY / "profiles" / f"{profile}.json").read_text())
    args = settings.resolve(wanted, on_cpu=False, environment={})
    made = pytest.importorskip("vllm.engine.arg_utils").AsyncEngineArgs(**args).create_engine_config()
    assert made.model_config.max_model_len == said["max_model_len"]
    assert made.model_config.enforce_eager == said.get("enforce_eager", False)
    assert made.scheduler_config.max_num_seqs == said["max_num_seqs"]
    assert made.scheduler_config.max_num_batched_tokens == said["max_num_batched_tokens"]
    assert made.cache_config.kv_cache_memory_bytes == said["kv_cache_memory_bytes"]
    assert made.cache_config.enable_prefix_caching


def budgets():
    """README's table of profiles: name, and (weights, KV cache, together with ASR and TTS) in GB, GiB, GB."""
    row = re.compile(r"^\| `([\w-]+)`.*?\| about ([\d.]+) GB \| (\d+) GiB \| about (\d+) GB \|", re.MULTILINE)
    return {name: tuple(map(float, numbers)) for name, *numbers in row.findall((REPOSITORY / "README.md").read_text())}


def test_the_budgets_of_all_three_models_fit_into_a_sparks_memory():
    assert set(budgets()) == set(PROFILES)
    for profile, (weights, cache_gib, together) in budgets().items():
        args = json.loads((REPOSITORY / "profiles" / f"{profile}.json").read_text())
        assert args["kv_cache_memory_bytes"] == cache_gib * 2**30, profile
        if profile.startswith("spark"):
            vllm = VLLM_EAGER_GB if args.get("enforce_eager") else VLLM_GB
            total = weights + args["kv_cache_memory_bytes"] / 1e9 + vllm + SPEECH_GB
            assert total == pytest.approx(together, abs=2), profile
            # vLLM refuses to start with less free than its share, and the speech models must fit beside that share.
            share = args["gpu_memory_utilization"] * SPARK_GB
            assert total - SPEECH_GB < share < SPARK_GB - SPEECH_GB, profile
        assert together < SPARK_GB, profile


def test_the_default_is_the_fp8_profile():
    default, fp8 = (REPOSITORY / name for name in ("1/model.json", "profiles/spark-fp8.json"))
    assert json.loads(default.read_text()) == json.loads(fp8.read_text())


def test_a_profile_replaces_model_json_and_other_settings_win_over_it(folder, tmp_path):
    assert resolved(folder, {"NEMOTRON_PROFILE": "small"}) == {"model": "org/small", "reasoning_parser": "qwen3"}
    other = {"NEMOTRON_PROFILE": str(tmp_path / "profiles" / "laptop.json"), "NEMOTRON_MODEL": "org/mine"}
    assert resolved(folder, other)["model"] == "org/mine"


def test_parsers_are_set_replaced_and_taken_away(folder):
    def parsers(**environment):
        return settings.load(folder, "nemotron", {}, {"NEMOTRON_PROFILE": "small", **environment}).parsers

    assert parsers() == {"reasoning_parser": "qwen3"}
    assert parsers(NEMOTRON_REASONING_PARSER="none", NEMOTRON_TOOL_CALL_PARSER="hermes") == {
        "tool_call_parser": "hermes"
    }
    assert parsers(NEMOTRON_ENGINE_ARGS='{"reasoning_parser": null}') == {}
    (folder / "mine.py").write_text("")
    assert parsers(NEMOTRON_TOOL_PARSER_PLUGIN="mine.py")["tool_parser_plugin"] == str(folder / "mine.py")


def test_lora_adapters_are_read_from_the_stock_backends_file(folder):
    (folder / "multi_lora.json").write_text('{"pirate": "adapters/pirate", "poet": "/poet"}')
    environment = {"NEMOTRON_ENGINE_ARGS": '{"enable_lora": "true"}'}
    loras = settings.load(folder, "nemotron", {}, environment).loras
    assert loras == {"pirate": str(folder / "adapters" / "pirate"), "poet": "/poet"}
    assert resolved(folder, environment)["enable_lora"] is True
    assert settings.load(folder, "nemotron", {}, {}).loras == {}


@pytest.mark.parametrize(
    ("parameters", "arguments", "reported"),
    [
        ({}, "{}", False),
        ({"REPORT_CUSTOM_METRICS": "true"}, "{}", True),
        ({"REPORT_CUSTOM_METRICS": "True"}, '{"disable_log_stats": true}', False),
    ],
)
def test_metrics_are_switched_as_in_the_stock_backend(folder, parameters, arguments, reported):
    wanted = settings.load(folder, "nemotron", parameters, {"NEMOTRON_ENGINE_ARGS": arguments})
    assert wanted.report_metrics is reported


def test_a_dead_engines_model_is_unloaded_unless_told_otherwise(folder):
    assert settings.load(folder, "nemotron", {}, {}).unload_dead
    assert not settings.load(folder, "nemotron", {"ENABLE_VLLM_HEALTH_CHECK": "false"}, {}).unload_dead


def test_nothing_is_compiled_on_a_cpu_unless_asked_for(folder):
    wanted = settings.load(folder, "nemotron", {}, {})
    assert settings.environment_defaults(wanted, on_cpu=False)["VLLM_PLUGINS"] == ""
    assert "TORCH_COMPILE_DISABLE" in settings.environment_defaults(wanted, on_cpu=True)
    compiled = settings.load(folder, "nemotron", {}, {"NEMOTRON_ENGINE_ARGS": '{"enforce_eager": false}'})
    assert "TORCH_COMPILE_DISABLE" not in settings.environment_defaults(compiled, on_cpu=True)
