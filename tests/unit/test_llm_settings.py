"""How model.json, config.pbtxt and the environment make a model's engine arguments."""

import json
from pathlib import Path

import pytest

from vllm_chat import settings
from vllm_chat.errors import SettingsError

REPOSITORY = Path(__file__).parents[2] / "model_repository" / "nemotron"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"model": "org/name", "max_model_len": 4096, "max_num_seqs": 8}))
    return tmp_path


def resolved(folder, environment, *, on_cpu=False, parameters=None):
    wanted = settings.load(folder, "nemotron", parameters or {}, environment)
    args = settings.resolve(wanted, on_cpu=on_cpu, environment=environment)
    assert args.pop("worker_extension_cls") == settings.LIFELINE
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


def test_nothing_is_compiled_on_a_cpu_unless_asked_for(folder):
    wanted = settings.load(folder, "nemotron", {}, {})
    assert settings.environment_defaults(wanted, on_cpu=False)["VLLM_PLUGINS"] == ""
    assert "TORCH_COMPILE_DISABLE" in settings.environment_defaults(wanted, on_cpu=True)
    compiled = settings.load(folder, "nemotron", {}, {"NEMOTRON_ENGINE_ARGS": '{"enforce_eager": false}'})
    assert "TORCH_COMPILE_DISABLE" not in settings.environment_defaults(compiled, on_cpu=True)
