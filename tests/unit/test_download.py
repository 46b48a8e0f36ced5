"""`triton-voice download` against a real HTTP server, with the real huggingface_hub."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support_hub import Hub, running
from typer.testing import CliRunner

from triton_voice.cli import doctor
from triton_voice.cli import weights as weight_options
from triton_voice.cli.app import app
from triton_voice.download import LOCK_NAME, PARTS, DownloadError, Lock, Manifest
from triton_voice.download.layout import alone
from triton_voice.download.manifest import repository_of
from triton_voice.errors import InvalidInput
from triton_voice.paths import project_root
from triton_voice.server.settings import llm_profiles

SPEECH = {"parakeet": "acme/hears", "magpie": "acme/speaks", "codec": "acme/codes"}
LLM = "acme/thinks"
COMMITS = {name: hashlib.sha1(name.encode()).hexdigest() for name in [*SPEECH.values(), LLM]}
NEWER = "f" * 40
BIG = 22 * 2**20  # more than two of huggingface_hub's pieces of 10 MiB


def content(seed: str, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


NEMO = {part: content(part, BIG if part == "parakeet" else 5000) for part in SPEECH}
LLM_FILES = {
    "config.json": b'{"model_type": "llama"}\n',
    "tokenizer_config.json": b"{}\n",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    ).encode(),
    "model-1.safetensors": content("one", 7000),
    "model-2.safetensors": content("two", 8000),
    "deeper/notes.txt": b"notes\n",
}


@pytest.fixture
def hub(monkeypatch):
    repositories = {name: {COMMITS[name]: {f"{part}-v1.nemo": NEMO[part]}} for part, name in SPEECH.items()}
    repositories[LLM] = {COMMITS[LLM]: dict(LLM_FILES)}
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with running(Hub(repositories)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture
def manifest(tmp_path) -> Path:
    sources = [
        {
            "part": part,
            "repository": name,
            "revision": COMMITS[name],
            "files": {f"{part}-v1.nemo": {"size": len(NEMO[part]), "sha256": sha256(NEMO[part])}},
            "license": "Acme Licence",
            "license_link": "https://acme.example/licence",
        }
        for part, name in SPEECH.items()
    ]
    sources.append({"part": "nemotron", "repository": LLM, "revision": None, "license": "Other Licence"})
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"sources": sources}))
    return path


def download(*arguments: object, code: int = 0) -> str:
    """Runs the command; returns what a person reads, on one line."""
    result = CliRunner().invoke(app, ["download", *map(str, arguments)])
    words = result.output + (str(result.exception) if isinstance(result.exception, DownloadError) else "")
    if result.exception is not None and not isinstance(result.exception, DownloadError | SystemExit):
        raise result.exception
    assert (result.exit_code == 0) == (code == 0), words
    return re.sub(r"\s+", " ", words)


def laid_out(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != LOCK_NAME
    }


WHOLE = {f"{part}.nemo": data for part, data in NEMO.items()} | {f"llm/{name}": d for name, d in LLM_FILES.items()}


def test_everything_comes_verified_and_where_serve_looks(hub, manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    words = download("--to", tmp_path / "models", "--manifest", manifest, "--yes")
    assert laid_out(tmp_path / "models") == WHOLE
    assert "Acme Licence: https://acme.example/licence" in words and "free in" in words
    assert "4 downloaded and verified" in words

    lock = Lock.read(tmp_path / "models")
    assert {part: source.revision for part, source in lock.parts.items()} == {
        **{part: COMMITS[name] for part, name in SPEECH.items()},
        "nemotron": COMMITS[LLM],
    }
    # The language model had no pin: the newest was asked for, and is said.
    assert f"{LLM}: no pin; its newest revision, {COMMITS[LLM]}, is now recorded" in words
    # The token goes to the hub, never to the host that serves the large files, and is written nowhere.
    by_host = {host.split(":")[0]: token for *_, host, token in hub.requests}
    assert by_host == {"127.0.0.1": "Bearer hf_secret", "localhost": None}
    assert "hf_secret" not in words + (tmp_path / "models" / LOCK_NAME).read_text()

    weights = weight_options.resolve(tmp_path / "models", False, None, None, None, None)
    assert weights.parakeet == str(tmp_path / "models/parakeet.nemo")
    assert weights.llm == str(tmp_path / "models/llm")
    assert "whole" in download("--to", tmp_path / "models", "--verify")
    monkeypatch.setenv("TRITON_VOICE_MODELS", str(tmp_path / "models"))
    fine, words = doctor._downloaded()
    assert fine and "parakeet (acme/hears)" in words and LLM in words

    # The resolved revision stays, whatever the hub's main has become, and nothing is fetched again.
    hub.repositories[LLM][NEWER] = {"config.json": b"changed"}
    hub.requests.clear()
    assert "there" in download("--to", tmp_path / "models", "--manifest", manifest, "--yes")
    assert not [path for _, path, *_ in hub.requests if "/resolve/" in path or "/storage/" in path]


def test_an_interrupted_download_goes_on_where_it_stopped(hub, manifest, tmp_path):
    hub.stalls["parakeet-v1.nemo"] = 21 * 2**20
    arguments = ["download", "--only", "parakeet", "--to", tmp_path / "models", "--manifest", manifest, "--yes"]
    command = [sys.executable, "-c", "from triton_voice.cli.app import main; main()", *map(str, arguments)]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert hub.stalled.wait(120)
    partial = tmp_path / "models" / ".partial"
    while sum(path.stat().st_size for path in partial.rglob("*.partial")) < 20 * 2**20:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    hub.go_on.set()
    assert not (tmp_path / "models" / "parakeet.nemo").exists()

    words = download(*arguments[1:])
    assert (tmp_path / "models" / "parakeet.nemo").read_bytes() == NEMO["parakeet"]
    assert hub.fetched("parakeet-v1.nemo") == [None, f"bytes={20 * 2**20}-"]
    assert not partial.exists()
    assert "2.1 MB to get" in words  # not 23.1


def test_a_damaged_file_is_refused_and_comes_right_the_next_time(hub, manifest, tmp_path):
    hub.damaged = {"magpie-v1.nemo", "config.json"}
    arguments = ["--to", tmp_path / "models", "--manifest", manifest, "--yes", "--only"]
    for part, file in (("magpie", "magpie-v1.nemo"), ("nemotron", "config.json")):
        words = download(*arguments, part, code=1)
        assert file in words and "damaged on the way" in words and "run the command again" in words
    assert laid_out(tmp_path / "models").keys().isdisjoint(WHOLE)
    download(*arguments, "magpie,nemotron")
    assert laid_out(tmp_path / "models")["llm/config.json"] == LLM_FILES["config.json"]

    (tmp_path / "models" / "magpie.nemo").write_bytes(NEMO["magpie"][:-1] + b"x")
    words = download("--to", tmp_path / "models", "--verify", code=1)
    assert "magpie.nemo has the checksum" in words and "nemotron whole" in words


def test_the_hub_may_not_offer_other_bytes_than_were_pinned(hub, manifest, tmp_path):
    hub.repositories["acme/codes"][COMMITS["acme/codes"]]["codec-v1.nemo"] = b"another"
    words = download("--to", tmp_path, "--manifest", manifest, "--yes", "--only", "codec", code=1)
    assert "codec-v1.nemo on the hub has 7 bytes instead of 5000" in words
    pinned = json.loads(manifest.read_text())
    pinned["sources"][-1]["weights_size"] = 15001
    (tmp_path / "pinned.json").write_text(json.dumps(pinned))
    words = download("--to", tmp_path, "--manifest", tmp_path / "pinned.json", "--yes", "--only", "nemotron", code=1)
    assert "has 15000 bytes of weights instead of 15001" in words
    hub.repositories[LLM][COMMITS[LLM]] = {"../outside.json": b"{}"}
    words = download("--to", tmp_path, "--manifest", manifest, "--yes", "--only", "nemotron", code=1)
    assert "points out of its folder" in words
    assert not (tmp_path.parent / "outside.json").exists()


def test_what_stands_in_the_way_is_said_in_words(hub, manifest, tmp_path, monkeypatch):
    arguments = ["--to", tmp_path / "models", "--manifest", manifest, "--only", "codec"]
    assert "say --yes" in download(*arguments, code=1)  # no terminal to ask at
    hub.gated.add("acme/codes")
    stored = tmp_path / "token"  # of an earlier login: not asked for, so not sent
    stored.write_text("hf_stored")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(stored))
    assert f"accept its licence at {hub.endpoint}/acme/codes" in download(*arguments, "--yes", code=1)
    assert {token for *_, token in hub.requests} == {None}
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "gated" in download(*arguments, "--yes")

    hub.repositories["acme/speaks"] = {NEWER: {}}
    assert f"no revision {COMMITS['acme/speaks']}" in download(*arguments[:-1], "magpie", "--yes", code=1)
    del hub.repositories["acme/speaks"]
    assert "is not there, or private" in download(*arguments[:-1], "magpie", "--yes", code=1)
    words = download(*arguments[:-1], "nemotron", "--llm", "no such", "--yes", code=1)
    assert "neither a profile nor a repository" in words

    assert "Not a directory" in download("--to", manifest / "models", "--manifest", manifest, "--yes", code=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "parakeet.nemo").touch()
    assert "does not know of it" in download(
        "--to", tmp_path / "mine", "--manifest", manifest, "--only", "parakeet", "--yes", code=1
    )
    with alone(tmp_path / "mine"):
        words = download("--to", tmp_path / "mine", "--manifest", manifest, "--only", "codec", "--yes", code=1)
        assert "another `triton-voice download` is at work" in words
    huge = json.loads(manifest.read_text())
    huge["sources"][0]["files"]["parakeet-v1.nemo"] = {}
    manifest.write_text(json.dumps(huge))
    monkeypatch.setattr("triton_voice.cli.download.SPARE_BYTES", 10**18)
    words = download("--to", tmp_path / "models", "--manifest", manifest, "--only", "parakeet", "--yes", code=1)
    assert "too few. Make room" in words
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    words = download(*arguments[:-1], "parakeet", "--yes", code=1)
    assert "cannot be reached" in words and "--from" in words


@pytest.mark.parametrize("layout", ["ours", "hub cache", "local-dir"])
def test_files_that_are_here_already_are_verified_and_laid_out_without_a_network(
    layout, manifest, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    usb = tmp_path / "usb"
    for part, name in [*SPEECH.items(), ("nemotron", LLM)]:
        files = LLM_FILES if part == "nemotron" else {f"{part}-v1.nemo": NEMO[part]}
        for path, data in files.items():
            file = {
                "ours": usb / ("llm/" + path if part == "nemotron" else f"{part}.nemo"),
                "hub cache": usb / f"hub/models--{name.replace('/', '--')}/snapshots/{COMMITS[name]}/{path}",
                "local-dir": usb / name.split("/")[1] / path,
            }[layout]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    words = download("--from", usb, "--to", tmp_path / "models", "--manifest", manifest)
    assert laid_out(tmp_path / "models") == WHOLE
    assert f"no checksum is known: {LLM}" in words  # and only there: the manifest has the others'
    lock = Lock.read(tmp_path / "models")
    assert lock.parts["codec"].revision == COMMITS["acme/codes"]
    assert lock.parts["nemotron"].revision == (COMMITS[LLM] if layout == "hub cache" else None)

    # From here on there is a checksum for all, also on the next machine.
    (tmp_path / "models/llm/config.json").unlink()
    (tmp_path / "models/llm/config.json").write_text("{}")
    words = download("--from", tmp_path / "models", "--to", tmp_path / "next", "--manifest", manifest, code=1)
    assert "config.json has 2 bytes instead of" in words
    (tmp_path / "models/llm/model-2.safetensors").unlink()
    words = download("--from", tmp_path / "models", "--to", tmp_path / "next", "--manifest", manifest, code=1)
    assert "lacks model-2.safetensors" in words


def test_a_folder_is_served_with_the_profile_that_it_was_made_for(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    (folder / "llm").mkdir(parents=True)
    fp8, nvfp4 = repository_of("spark-fp8"), repository_of("spark-nvfp4")
    part = {"repository": nvfp4, "files": {}, "profile": "spark-nvfp4"}
    (folder / LOCK_NAME).write_text(json.dumps({"parts": {"nemotron": part}}))
    only = ("nemotron",)

    def environment(llm: str | None) -> dict[str, str]:
        return weight_options.resolve(folder, False, None, None, None, llm, only).environment() | {
            "PARAKEET_CHECKPOINT": "",
            "MAGPIE_CHECKPOINT": "",
            "MAGPIE_CODEC": "",
        }

    chosen = environment(None)
    assert (chosen["NEMOTRON_PROFILE"], chosen["NEMOTRON_MODEL"]) == ("spark-nvfp4", str(folder / "llm"))
    with pytest.raises(InvalidInput, match=re.escape(f"for {fp8}, and {folder / 'llm'} is {nvfp4}")):
        environment("spark-fp8")
    assert environment("Qwen/Qwen3-1.7B")["NEMOTRON_MODEL"] == "Qwen/Qwen3-1.7B"
    with pytest.raises(InvalidInput, match=r"lacks .*parakeet\.nemo"):
        weight_options.resolve(folder, False, None, None, None, None)
    assert weight_options.resolve(folder, False, "mine.nemo", None, None, None, ("parakeet",)).parakeet == "mine.nemo"


def test_the_packages_manifest_has_a_pin_for_every_part_and_profile():
    manifest = Manifest.load()
    for source in manifest.choose(PARTS, None):
        assert source.revision and source.license and source.license_link
    for source in manifest.choose(("parakeet", "magpie", "codec"), None):
        assert all(entry.size and entry.sha256 for entry in (source.files or {}).values())
    for profile in llm_profiles():
        (source,) = manifest.choose(("nemotron",), repository_of(profile))
        assert source.revision and source.license, profile
    assert manifest.choose(("nemotron",), None)[0].repository == repository_of("spark-fp8")
    # The same names as config.pbtxt loads with `--hub`.
    repository = project_root() / "model_repository"
    for part in ("parakeet", "magpie"):
        (source,) = manifest.choose((part,), None)
        assert f'"{source.repository}"' in (repository / part / "config.pbtxt").read_text()
    (unpinned,) = manifest.choose(("nemotron",), "someone/else")
    assert unpinned.revision is None
