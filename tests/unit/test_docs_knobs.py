"""docs/tuning.md has every setting of the server, with the default that it has, and none that there is not; and every
variable that code reads is on some page."""

from __future__ import annotations

import json
import re

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from support_docs import ROOT, pages
from triton_voice.server import ServerSettings

MODELS = ("parakeet", "magpie", "nemotron")
CODE = ("client", "bot", "perf", "training", "model_repository", "backends", "docker", "examples")
# A name in quotes, in Node.js' `process.env`, or in HAProxy's `${NAME-default}`.
VARIABLE = re.compile(r"""(?:["']|env\.|\$\{)((?:(?:TRITON_)?VOICE|PARAKEET|MAGPIE|NEMOTRON)_[A-Z0-9_]*[A-Z0-9])\b""")
PRIVATE = {"TRITON_VOICE_SELF_CHECK"}  # docker/self_check.py tells its own second run by it


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


def variables() -> dict[str, str]:
    """Every variable of ours that code names, and one file that does."""
    found = {}
    for path in (path for folder in CODE for path in (ROOT / folder).rglob("*.*") if "node_modules" not in path.parts):
        if path.suffix in (".py", ".js", ".cfg"):
            where = str(path.relative_to(ROOT))
            found |= {name: where for name in VARIABLE.findall(path.read_text())}
    return found


def test_every_variable_that_the_code_reads_is_on_a_page():
    texts = [path.read_text() for path in (*pages(), ROOT / "docker/env.example") if path.name != "CHANGELOG.md"]
    written = set(re.findall(r"[A-Z][A-Z0-9_]+", "\n".join(texts)))
    read = variables()
    assert {"TRITON_VOICE_URL", "VOICE_BIND", "TRITON_VOICE_TRITONSERVER"} <= set(read)  # they are seen at all
    assert {name: where for name, where in read.items() if name not in written | PRIVATE} == {}
