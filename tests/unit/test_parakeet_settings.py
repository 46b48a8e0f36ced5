"""Settings of the recogniser: what is read, and refusals that say what is allowed."""

from __future__ import annotations

import pytest

from parakeet_engine import AsrError, EngineSettings, SettingsError


def test_texts_are_read_and_others_are_ignored():
    settings = EngineSettings.from_texts(
        {
            "PARAKEET_CHECKPOINT": "a.nemo",
            "PARAKEET_MAX_STREAMS": " 8 ",
            "PARAKEET_IDLE_S": "0.5",
            "PARAKEET_CUDA_GRAPHS": "false",
            "PARAKEET_PRECISION": "bfloat16",
            "PARAKEET_START_TIMEOUT_S": "0",
            "MAGPIE_DEVICE": "tape",
        }
    )
    assert settings == EngineSettings(
        "a.nemo", max_streams=8, idle_s=0.5, cuda_graphs=False, precision="bfloat16", start_timeout_s=0.0
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PRECISION", "fp16", "'fp16'; choose one of float32, bfloat16"),
        ("PRECISION", "float16", "'float16'; choose one of float32, bfloat16"),
        ("DEVICE", "gpu", "'gpu'; choose one of auto, cpu, cuda"),
        ("MAX_STREAMS", "0", "0; it must be at least 1"),
        ("MAX_STREAMS", "many", "'many'; it must be a whole number"),
        ("MAX_BATCH", "0", "0; it must be at least 1"),
        ("MAX_BATCH", "1.5", "'1.5'; it must be a whole number"),
        ("DEFAULT_LATENCY_MS", "-160", "-160; it must be at least 1"),
        ("CUDA_GRAPHS", "1", "'1'; it must be true or false"),
        ("IDLE_S", "0", "0.0; it must be more than 0"),
        ("MAX_REQUEST_S", "nan", "nan; it must be more than 0"),
        ("MAX_STREAM_S", "-1", "-1.0; it must be more than 0"),
        ("START_TIMEOUT_S", "soon", "'soon'; it must be a number"),
        ("START_TIMEOUT_S", "-1", "-1.0; it must be at least 0"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_allowed(name, value, said):
    with pytest.raises(SettingsError) as error:
        EngineSettings.from_texts({"PARAKEET_CHECKPOINT": "a.nemo", f"PARAKEET_{name}": value})
    assert str(error.value) == f"PARAKEET_{name} is {said}"
    assert isinstance(error.value, AsrError)  # so that the model's load fails with the sentence
