"""docs/tuning.md has every setting of the server, with the default that it has, and none that there is not."""

from __future__ import annotations

import json
import re

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from support_docs import ROOT
from triton_voice.server import ServerSettings

MODELS = ("parakeet", "magpie", "nemotron")


def parameters(model: str) -> dict[str, str]:
    """The parameters of a config.pbtxt, as Triton reads them."""
    text = (ROOT / "model_repository" / model / "config.pbtxt").read_text()
    # Triton's own fields that the published schema may not know yet do not matter here.
    config = text_format.Parse(text, ModelConfig(), allow_unknown_field=True)
    return {name: value.string_value for name, value in config.parameters.items()}


def documented() -> dict[str, str]:
    """The rows of the tables: setting to default."""
    rows = {}
    for line in (ROOT / "docs/tuning.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"`[A-Z0-9_]+`(, `[A-Z0-9_]+`)*", cells[0]):
            for name in re.findall(r"[A-Z0-9_]+", cells[0]):
                rows[name] = cells[1].strip("`")
    return rows


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_is_documented_with_its_default(model):
    rows = documented()
    for name, default in parameters(model).items():
        assert name in rows, f"docs/tuning.md lacks {name}"
        assert rows[name] == (default or "empty"), name


def test_every_documented_setting_exists():
    known = {name for model in MODELS for name in parameters(model)}
    known |= {f"TRITON_VOICE_{name.upper()}" for name in ServerSettings.model_fields}
    assert set(documented()) - known == set()


def test_every_variable_of_the_server_is_documented_with_its_default():
    rows = documented()
    for name, field in ServerSettings.model_fields.items():
        variable = f"TRITON_VOICE_{name.upper()}"
        assert variable in rows, f"docs/tuning.md lacks {variable}"
        default = field.get_default(call_default_factory=True)
        if isinstance(default, tuple):
            default = ",".join(default)
        if isinstance(default, float):
            default = f"{default:g}"
        if default is not None:  # None is said in words
            assert rows[variable] == str(default).lower() if isinstance(default, bool) else str(default), variable


def test_the_profiles_that_are_named_exist():
    text = (ROOT / "docs/tuning.md").read_text()
    profiles = {path.stem for path in (ROOT / "model_repository/nemotron/profiles").glob("*.json")}
    assert set(re.findall(r"`(spark-[\w-]+)`", text)) == {name for name in profiles if name.startswith("spark")}
    for found in re.findall(r"NEMOTRON_ENGINE_ARGS='(\{.*?\})'", text):
        assert isinstance(json.loads(found), dict)
