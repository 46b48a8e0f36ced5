"""What the command line and the environment turn into, before any server runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from triton_voice.server import ServerSettings, Weights
from triton_voice.server.process import plain_load_error
from triton_voice.server.settings import llm_profiles


def test_the_llm_is_a_profile_a_file_a_folder_or_a_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"spark-fp8", "spark-nvfp4", "spark-bf16", "laptop"} <= set(llm_profiles())
    assert Weights(llm="laptop").environment() == {"NEMOTRON_PROFILE": "laptop"}
    # The server runs in a folder of its own, so a relative path must not stay one.
    assert Weights(llm="mine.json").environment() == {"NEMOTRON_PROFILE": str(tmp_path / "mine.json")}
    assert Weights(llm="Qwen/Qwen3-1.7B").environment() == {"NEMOTRON_MODEL": "Qwen/Qwen3-1.7B"}
    assert Weights().environment() == {}


def test_models_are_chosen_by_the_environment_too(monkeypatch):
    monkeypatch.setenv("TRITON_VOICE_ONLY", "parakeet, magpie")
    assert ServerSettings().only == ("parakeet", "magpie")
    monkeypatch.setenv("TRITON_VOICE_ONLY", "parakeat")
    with pytest.raises(ValidationError, match="parakeat: there are nemotron, parakeet, magpie"):
        ServerSettings()


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        (
            "[StatusCode.INTERNAL] load failed for model 'a': version 1 is at UNAVAILABLE state: Internal: ValueError: "
            "no checkpoint at x\n\nAt:\n  /repo/a/1/model.py(8): initialize\n;\n",
            "no checkpoint at x",
        ),
        ("[StatusCode.INTERNAL] failed to load 'a', failed to poll from model repository", None),
    ],
)
def test_a_load_error_becomes_the_models_own_sentence(message, plain):
    assert plain_load_error(message) == (plain or message.removeprefix("[StatusCode.INTERNAL] "))


def test_relative_paths_of_checkpoints_reach_the_server_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.nemo").touch()
    (tmp_path / "llm").mkdir()
    environment = Weights(parakeet="mine.nemo", llm="llm").environment()
    assert environment == {"PARAKEET_CHECKPOINT": str(tmp_path / "mine.nemo"), "NEMOTRON_MODEL": str(tmp_path / "llm")}
    assert Path(environment["PARAKEET_CHECKPOINT"]).is_absolute()
