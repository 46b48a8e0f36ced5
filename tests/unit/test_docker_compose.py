"""docker/compose.yaml: what its schema says, and what no schema can say."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from triton_voice.server.settings import ServerSettings
from voice_bot.settings import BotSettings

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
TEXT = (DOCKER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("server", "bot", "download")
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::-([^}]*))?\}")


def example() -> dict[str, str]:
    """The variables of env.example with their values."""
    lines = (
        line.lstrip("#") for line in (DOCKER / "env.example").read_text().splitlines() if not line.startswith("# ")
    )
    return dict(line.split("=", 1) for line in lines if "=" in line)


def with_defaults(value: str) -> str:
    return VARIABLE.sub(lambda found: found[2] or "", value)


def passed_on(service: str) -> set[str]:
    """Variables that a service gets if they are set."""
    return {name for name, value in SERVICES[service].get("environment", {}).items() if value is None}


class Override(yaml.SafeLoader):
    """Knows Compose's tag that takes a value of an earlier file away."""


Override.add_constructor("!reset", lambda loader, node: {})


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cpu.yaml"])
def test_follows_the_compose_specification(name: str) -> None:
    spec = importlib.util.find_spec("check_jsonschema")
    if spec is None or spec.origin is None:
        pytest.skip("check-jsonschema, which carries the schema, is not installed (extra dev)")
    import jsonschema

    schema = Path(spec.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    content = yaml.load((DOCKER / name).read_text(), Override)
    errors = jsonschema.Draft7Validator(json.loads(schema.read_text())).iter_errors(content)
    assert [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in errors] == []


def test_every_variable_has_a_default_that_the_example_shows() -> None:
    used = {name: default for name, default in VARIABLE.findall(TEXT)}
    assert not [found[0] for found in VARIABLE.finditer(TEXT) if found[2] is None], "a variable without a default"
    shown = example()
    expected = {"TRITON_VOICE_GPUS": "1", **{name: default for name, default in used.items()}}
    assert {name: shown.get(name) for name in expected} == expected
    assert set(shown) == set(used).union(*(passed_on(service) for service in OURS))


def test_names_in_the_environment_are_settings_that_exist() -> None:
    """A misspelt variable would be ignored without a word."""
    configurations = "".join(path.read_text() for path in ROOT.glob("model_repository/*/config.pbtxt"))
    parameters = set(re.findall(r'key: "(\w+)"', configurations))
    server = {f"TRITON_VOICE_{name.upper()}" for name in ServerSettings.model_fields} | {"TRITON_VOICE_MODELS"}
    bot = {f"TRITON_VOICE_BOT_{name.upper()}" for name in BotSettings.model_fields}
    known = server | bot | parameters | {"HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT"}
    for service in OURS:
        assert set(SERVICES[service].get("environment", {})) <= known, service


def test_nothing_is_reached_from_the_network_unless_asked_for() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert with_defaults(port).startswith("127.0.0.1:"), f"{name}: {port}"
        if service.get("network_mode") == "host":
            words = json.dumps([service.get("environment"), service.get("command")])
            assert "127.0.0.1" in with_defaults(words) and "0.0.0.0" not in words, name


def test_secrets_come_from_the_environment_alone() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("TOKEN|PASSWORD|SECRET", variable):
                assert value is None, f"{name}: {variable}"
    assert not [line for line in example() if "TOKEN" in line and example()[line]]
    assert ".env" in (DOCKER / ".gitignore").read_text().split()


def test_every_file_that_is_mounted_or_built_from_exists() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = with_defaults(volume).split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), f"{name}: {source}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {source}"
        if "build" in service:
            assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        for word in service.get("healthcheck", {}).get("test", []):
            assert not word.endswith(".py") or (ROOT / word).is_file()


def test_the_two_images_build_with_the_arguments_that_compose_gives() -> None:
    for service in ("server", "bot"):
        build = SERVICES[service]["build"]
        dockerfile = (ROOT / build["dockerfile"]).read_text()
        for name, value in build.get("args", {}).items():
            assert f"ARG {name}={with_defaults(value)}\n" in dockerfile, f"{name} differs from {build['dockerfile']}"


def test_others_images_are_pinned_and_services_are_confined() -> None:
    for name, service in SERVICES.items():
        if "build" not in service:
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), f"{name}: {service['image']}"
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == ("no" if name == "download" else "unless-stopped")
        if name != "download":
            assert "memory" in service["deploy"]["resources"]["limits"], name


def test_bot_waits_for_models_that_answer_and_the_server_has_a_gpu() -> None:
    assert SERVICES["bot"]["depends_on"]["server"]["condition"] == "service_healthy"
    assert "--answer" in SERVICES["server"]["healthcheck"]["test"]
    devices = SERVICES["server"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["driver"] == "nvidia" and "gpu" in devices[0]["capabilities"]


def test_without_a_gpu_no_service_asks_for_one_or_for_an_image_with_cuda() -> None:
    cpu = yaml.load((DOCKER / "compose.cpu.yaml").read_text(), Override)["services"]
    assert cpu["server"]["deploy"]["resources"]["reservations"] == {}
    for name, service in SERVICES.items():
        if service.get("build", {}).get("dockerfile") == "docker/Dockerfile":
            assert cpu[name]["build"]["args"]["VARIANT"] == "cpu", name
            assert cpu[name]["image"] == cpu["server"]["image"] != service["image"], name


def test_stopping_takes_no_longer_than_compose_waits() -> None:
    seconds = int(SERVICES["server"]["stop_grace_period"].removesuffix("s"))
    assert seconds > ServerSettings.model_fields["stop_timeout_s"].default + 10


def test_monitoring_is_a_profile_and_finds_everybody_by_name() -> None:
    profile = {name for name, service in SERVICES.items() if "monitoring" in service.get("profiles", [])}
    assert profile == {"prometheus", "grafana", "otel-collector"}
    hosts = [host.split(":")[0] for host in SERVICES["prometheus"]["extra_hosts"]]
    prometheus = yaml.safe_load((DOCKER / "monitoring" / "prometheus.yml").read_text())
    groups = [group for job in prometheus["scrape_configs"] for group in job["static_configs"]]
    for target in (target for group in groups for target in group["targets"]):
        assert target.split(":")[0] in {*hosts, "localhost"}, target
