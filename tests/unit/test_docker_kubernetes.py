"""docker/kubernetes: the manifests' schemas, and that they agree with each other, the image and the server."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from triton_voice.server.launch import DRAIN_S
from triton_voice.server.settings import MODELS, ServerSettings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker" / "kubernetes"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MANIFESTS: list[dict[str, Any]] = [
    manifest for name in KUSTOMIZATION["resources"] for manifest in yaml.safe_load_all((FOLDER / name).read_text())
]
KUBERNETES = "1.33"
BALANCER = (FOLDER / "haproxy.cfg").read_text()


def one(kind: str, name: str) -> dict[str, Any]:
    (found,) = [m for m in MANIFESTS if m["kind"] == kind and m["metadata"]["name"] == name]
    return found


def pod(kind: str, name: str) -> dict[str, Any]:
    return one(kind, name)["spec"]["template"]["spec"]


SERVER = pod("StatefulSet", "triton-voice")
SERVER_CONTAINER: dict[str, Any] = SERVER["containers"][0]


def test_manifests_follow_kubernetes_schemas() -> None:
    if importlib.util.find_spec("kubernetes_validate") is None:
        pytest.skip("kubernetes-validate, which carries the schemas, is not installed (extra dev)")
    import kubernetes_validate

    for manifest in MANIFESTS:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)  # strict: no field that does not exist


def test_kustomize_makes_of_it_what_a_cluster_takes() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None or importlib.util.find_spec("kubernetes_validate") is None:
        pytest.skip("kubectl or kubernetes-validate (extra dev) is not installed")
    import kubernetes_validate

    done = subprocess.run([kubectl, "kustomize", str(FOLDER)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = list(yaml.safe_load_all(done.stdout))
    assert {m["kind"] for m in made} == {m["kind"] for m in MANIFESTS} | {"ConfigMap"}
    for manifest in made:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    image = KUSTOMIZATION["images"][0]
    assert done.stdout.count(f"image: {image['newName']}:{image['newTag']}\n") == 2  # the server and its download
    (configuration,) = [m for m in made if m["kind"] == "ConfigMap"]
    assert f"name: {configuration['metadata']['name']}\n" in done.stdout.split("kind: Deployment")[1]


def test_every_file_of_the_folder_is_applied() -> None:
    applied = {*KUSTOMIZATION["resources"], *KUSTOMIZATION["configMapGenerator"][0]["files"]}
    assert applied == {path.name for path in FOLDER.iterdir()} - {"kustomization.yaml"}
    images = {c["image"].split(":")[0] for c in (*SERVER["containers"], *SERVER["initContainers"])}
    assert images == {image["name"] for image in KUSTOMIZATION["images"]}


def test_selectors_find_their_pods() -> None:
    labels = [m["spec"]["template"]["metadata"]["labels"] for m in MANIFESTS if "template" in m.get("spec", {})]
    selectors = []
    for manifest in MANIFESTS:
        spec = manifest.get("spec", {})
        if manifest["kind"] == "Service":
            selectors.append(spec["selector"])
        elif "selector" in spec:
            selectors.append(spec["selector"]["matchLabels"])
        elif manifest["kind"] == "NetworkPolicy":
            selectors.append(spec["podSelector"]["matchLabels"])
    assert len(selectors) == 8
    assert all(any(selector.items() <= found.items() for found in labels) for selector in selectors)


def test_ports_exist_where_they_are_named() -> None:
    for service, container in (
        (one("Service", "triton-voice-replicas"), SERVER_CONTAINER),
        (one("Service", "triton-voice"), pod("Deployment", "balancer")["containers"][0]),
    ):
        named = {port["name"]: port["containerPort"] for port in container["ports"]}
        for port in service["spec"]["ports"]:
            assert named[port["targetPort"]] == port["port"]
    fields = ServerSettings.model_fields
    expected = {name: fields[f"{name}_port"].default for name in ("http", "grpc", "metrics")}
    assert {port["name"]: port["containerPort"] for port in SERVER_CONTAINER["ports"]} == expected


def test_probes_ask_the_models_and_a_stop_waits_for_the_streams() -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = SERVER_CONTAINER[probe]["exec"]["command"]
        assert (ROOT / command[1]).is_file() and "healthcheck" in command[1]
    assert "--answer" in SERVER_CONTAINER["livenessProbe"]["exec"]["command"]
    stop = SERVER_CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert (ROOT / stop[1]).is_file()
    environment = {variable["name"]: variable["value"] for variable in SERVER_CONTAINER["env"]}
    drained = float(environment["TRITON_VOICE_DRAIN_S"])
    ending = DRAIN_S + ServerSettings.model_fields["stop_timeout_s"].default
    assert SERVER["terminationGracePeriodSeconds"] >= drained + ending


def test_pods_are_confined() -> None:
    for spec in (SERVER, pod("Deployment", "balancer")):
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
        for container in (*spec["containers"], *spec.get("initContainers", [])):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            claims = one("StatefulSet", "triton-voice")["spec"]["volumeClaimTemplates"]
            assert mounted <= {v["name"] for v in spec["volumes"]} | {c["metadata"]["name"] for c in claims}
    assert SERVER_CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_balancer_knows_the_replicas_asks_all_models_and_is_let_through() -> None:
    namespace = KUSTOMIZATION["namespace"]
    service = one("Service", "triton-voice-replicas")["metadata"]["name"]
    assert f"{service}.{namespace}.svc.cluster.local:8001" in BALANCER
    assert set(re.findall(r"/v2/models/(\w+)/ready", BALANCER)) == set(MODELS)
    policy = one("NetworkPolicy", "server")["spec"]["ingress"][0]
    assert {port["port"] for port in policy["ports"]} == {"http", "grpc"}


def test_no_image_can_change_under_its_name() -> None:
    (container,) = pod("Deployment", "balancer")["containers"]
    assert re.fullmatch(r"haproxy:\d+\.\d+\.\d+-alpine", container["image"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", KUSTOMIZATION["images"][0]["newTag"])


def test_the_limit_per_client_is_the_one_that_the_configuration_reads() -> None:
    (container,) = pod("Deployment", "balancer")["containers"]
    (variable,) = container["env"]
    (default,) = re.findall(rf"\${{{variable['name']}-(\d+)}}", BALANCER)
    assert variable["value"] == default


def test_haproxy_takes_its_configuration() -> None:
    haproxy = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if haproxy is None:
        pytest.skip("haproxy is not installed")
    done = subprocess.run([haproxy, "-c", "-f", str(FOLDER / "haproxy.cfg")], capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
