"""How a model is configured: `model.json`, Triton's config parameters, and the environment on top.

For a model named `nemotron` the settings are NEMOTRON_PROFILE, NEMOTRON_MODEL, NEMOTRON_ENGINE_ARGS,
NEMOTRON_CHAT_TEMPLATE_KWARGS and those of `PARSER_ARGS` in upper case, e.g. NEMOTRON_REASONING_PARSER: parameters of
config.pbtxt, which environment variables of the same names override. Another model of this backend has its own name as
the prefix. The stock backend's own parameters (REPORT_CUSTOM_METRICS, ENABLE_VLLM_HEALTH_CHECK) keep their names.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_chat.errors import SettingsError

ENGINE_ARGS_FILE = "model.json"
PROFILES_FOLDER = "profiles"
LORAS_FILE = "multi_lora.json"
#: What model.json may hold beside engine arguments: vLLM's server takes these as flags. The plugins are Python files,
#: relative to the version folder, that register further parsers.
PARSER_ARGS = ("tool_call_parser", "tool_parser_plugin", "reasoning_parser", "reasoning_parser_plugin")
#: The word that takes a parser away.
NO_PARSER = "none"
CPU_KV_CACHE_BYTES = 1 << 30
#: vLLM's word for "as long as the cache allows".
FIT_THE_CACHE = -1
LIFELINE = "vllm_chat.lifeline.Lifeline"
#: Engine arguments that say how to share a GPU; on a CPU they are left out unless the environment asks for them.
GPU_ONLY = ("gpu_memory_utilization", "kv_cache_memory_bytes", "kv_cache_dtype")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a model is loaded with.

    Attributes:
        engine_args: Arguments of vLLM's `AsyncEngineArgs` from model.json, `model` overridden if so asked.
        overrides: Arguments from NEMOTRON_ENGINE_ARGS; they win, and a null takes an argument away.
        chat_template_kwargs: Defaults of the chat template's switches, e.g. `{"enable_thinking": false}`; a request's
            own `chat_template_kwargs` win.
        parsers: Values by name of `PARSER_ARGS`; what is not set is left out.
        loras: Folders of LoRA adapters by name, from multi_lora.json.
        report_metrics: vLLM's statistics go to Triton's metrics page.
        unload_dead: The model is unloaded when its engine has died.
    """

    engine_args: dict[str, Any]
    overrides: dict[str, Any]
    chat_template_kwargs: dict[str, Any]
    parsers: dict[str, str] = dataclasses.field(default_factory=dict)
    loras: dict[str, str] = dataclasses.field(default_factory=dict)
    report_metrics: bool = False
    unload_dead: bool = True


def load(
    folder: Path, model_name: str, config_parameters: Mapping[str, str], environment: Mapping[str, str]
) -> Settings:
    """Collect a model's settings.

    Args:
        folder: The model's version folder, which holds model.json.
        model_name: Triton's name of the model; decides the prefix of its settings.
        config_parameters: `parameters` of config.pbtxt, string values by key.
        environment: Environment variables.

    Raises:
        SettingsError: If a file or a variable is missing or malformed.
    """
    prefix = re.sub(r"\W", "_", model_name).upper()

    def setting(name: str) -> tuple[str, str]:
        key = f"{prefix}_{name}"
        if environment.get(key, "").strip():
            return environment[key].strip(), f"the environment variable {key}"
        return config_parameters.get(key, "").strip(), f"the parameter {key} of {model_name}'s config.pbtxt"

    profile, profile_source = setting("PROFILE")
    path = _profile(profile, profile_source, folder.parent / PROFILES_FOLDER) if profile else folder / ENGINE_ARGS_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path} is needed, with vLLM's engine arguments in it: {error.strerror}") from None
    engine_args = _object(text, str(path))
    overrides_text, overrides_source = setting("ENGINE_ARGS")
    overrides = _object(overrides_text or "{}", overrides_source)
    model, model_source = setting("MODEL")
    if model:
        if model.startswith(("/", "./", "../", "~")):
            model = os.path.expanduser(model)
            if not Path(model, "config.json").is_file():
                raise SettingsError(
                    f"{model_source} is {model}, which holds no config.json; "
                    "it must be a Hugging Face model folder or the name of a model on the hub"
                )
        engine_args["model"] = model
    if not isinstance({**engine_args, **overrides}.get("model"), str):
        raise SettingsError(f"{path} must name a model: a Hugging Face folder or the name of one on the hub")
    template_text, template_source = setting("CHAT_TEMPLATE_KWARGS")
    merged = {**engine_args, **overrides}
    engine_args = {name: value for name, value in engine_args.items() if name not in PARSER_ARGS}
    overrides = {name: value for name, value in overrides.items() if name not in PARSER_ARGS}
    parsers = {name: str(setting(name.upper())[0] or merged.get(name) or "") for name in PARSER_ARGS}
    parsers = {name: value for name, value in parsers.items() if value not in ("", NO_PARSER)}
    for name in ("tool_parser_plugin", "reasoning_parser_plugin"):
        if name in parsers:
            parsers[name] = _plugin(name, folder / os.path.expanduser(parsers[name]))
    report = config_parameters.get("REPORT_CUSTOM_METRICS", "").lower() == "true"
    return Settings(
        engine_args,
        overrides,
        _object(template_text or "{}", template_source),
        parsers,
        _loras(merged, folder / LORAS_FILE),
        report_metrics=report and not merged.get("disable_log_stats"),
        unload_dead=config_parameters.get("ENABLE_VLLM_HEALTH_CHECK", "").lower() != "false",
    )


def _profile(name: str, source: str, folder: Path) -> Path:
    """The file of a profile: a name in the folder of profiles, or a path to a JSON file."""
    if name.endswith(".json"):
        return Path(name).expanduser()
    known = sorted(path.stem for path in folder.glob("*.json"))
    if name not in known:
        raise SettingsError(f"{source} is {name}; the profiles are {', '.join(known)}, or a path to a .json file")
    return folder / f"{name}.json"


def _plugin(name: str, path: Path) -> str:
    if not path.is_file():
        raise SettingsError(f"{name} is {path}, which is not there; it must be a Python file that registers a parser")
    return str(path)


def _loras(engine_args: Mapping[str, Any], path: Path) -> dict[str, str]:
    """LoRA adapters by name; relative folders are relative to the file."""
    if str(engine_args.get("enable_lora")).lower() != "true":
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"enable_lora is set, so {path} is needed: {error.strerror}") from None
    loras = _object(text, str(path))
    for name, folder in loras.items():
        if not isinstance(folder, str):
            raise SettingsError(f"{path}: {name} must be the path of an adapter's folder")
    return {name: str(path.parent / os.path.expanduser(folder)) for name, folder in loras.items()}


def resolve(settings: Settings, *, on_cpu: bool, environment: Mapping[str, str]) -> dict[str, Any]:
    """Merge engine arguments, fitted to the device.

    On a CPU the arguments about GPU memory go, the KV cache is small with a context that fits into it, nothing is
    compiled (a compiler would be needed, and the start takes a minute longer) and a float32 checkpoint stays float32
    instead of being halved.

    Raises:
        SettingsError: If vLLM knows no such argument.
    """
    args = dict(settings.engine_args)
    if on_cpu:
        args = {name: value for name, value in args.items() if name not in GPU_ONLY}
        args.setdefault("enforce_eager", True)
        if not environment.get("VLLM_CPU_KVCACHE_SPACE"):
            args["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
            args["max_model_len"] = FIT_THE_CACHE
        if _stored_dtype({**args, **settings.overrides}["model"]) == "float32":
            args.setdefault("dtype", "float32")
    args.setdefault("worker_extension_cls", LIFELINE)
    # The engine holds structured output back until the thinking has ended, so it must know the parser too.
    args.update({name: value for name, value in settings.parsers.items() if name.startswith("reasoning_")})
    args.update(settings.overrides)
    # Statistics are collected by our own logger or not at all; vLLM's own would write to its log as well.
    args["disable_log_stats"] = True
    if settings.loras:
        args["enable_lora"] = True
    args = {name: value for name, value in args.items() if value is not None}
    _check_names(args)
    return args


def environment_defaults(settings: Settings, *, on_cpu: bool) -> dict[str, str]:
    """Environment variables that vLLM should find, unless the user has set them."""
    defaults = {
        # NeMo installs a vLLM plugin that fails in the engine's start; none of our models needs a plugin.
        "VLLM_PLUGINS": "",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        # The engine's process must not be a fork of Triton's stub, which has threads and shared memory of its own.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if on_cpu:
        # AsyncLLM always puts its engine into a process of its own. On a CPU, "1" would add a second one for the worker
        # (it pins OpenMP threads to cores there): 0.6 GB more, another import of torch, and a shutdown that ends in a
        # kill after five seconds. With "0" the worker runs inside the engine's process, which leaves cleanly.
        defaults["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if {**settings.engine_args, **settings.overrides}.get("enforce_eager", True):
            # Parts of vLLM's sampler are compiled whatever enforce_eager says: the first request for logprobs would
            # wait 15 s for a compiler, or fail where there is none.
            defaults["TORCH_COMPILE_DISABLE"] = "1"
    return defaults


def _stored_dtype(model: str) -> str | None:
    """The data type that a local checkpoint says it is stored in, or None."""
    try:
        config = json.loads(Path(model, "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return config.get("torch_dtype") or config.get("dtype")


def _check_names(args: Mapping[str, Any]) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for name in args:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsError(f"vLLM has no engine argument {name} (from {ENGINE_ARGS_FILE} or ENGINE_ARGS){hint}")


def _object(text: str, source: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError(f"{source} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise SettingsError(f'{source} must be a JSON object such as {{"max_model_len": 4096}}, got {text[:60]}')
    return value
