"""`triton-voice serve` and `demo` as a user runs them: they start, say what is wrong, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from support import speechlike
from triton_voice import InvalidInput, ModelNotReady, ServerFault, ServerGone, TritonVoice
from triton_voice_chaos.subject import processes_left

CLI = [str(Path(sys.executable).parent / "triton-voice")]
START_TIMEOUT_S = 240
FREE_PORTS = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def processes_with(environment: dict[str, str]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if environment.items() <= process.environ().items():
                found.append(process)
    return found


def run(*args: str, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *args], capture_output=True, text=True, timeout=START_TIMEOUT_S, **kwargs)


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
def test_serve_stops_on_signals_and_leaves_no_process(tiny, tmp_path, stop_signal):
    command = [*CLI, "serve", "--only", "parakeet", "--log-file", str(tmp_path / "log"), *FREE_PORTS]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as serve:
        seen = ""
        while "ready  gRPC" not in seen:
            line = serve.stderr.readline()
            assert line, seen
            seen += line
        children = family(serve.pid)
        assert any("tritonserver" in p.name() for p in children)
        assert any("stub" in p.name() or "stub" in " ".join(p.cmdline()) for p in children)
        serve.send_signal(stop_signal)
        rest = serve.stderr.read()
    assert serve.returncode == 0, seen + rest
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert not list(Path("/dev/shm").glob(f"triton_voice_{serve.pid}_*"))


def test_nothing_is_left_of_a_serve_that_was_killed_while_a_model_loads(tiny, tmp_path):
    """A stub that is still loading when its server has gone would wait for it for ever; here it cannot even run."""
    command = [*CLI, "serve", "--only", "parakeet", "--log-file", str(tmp_path / "log"), *FREE_PORTS]
    (tmp_path / "temporary").mkdir()
    mark = {"TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, **mark}) as serve:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (stubs := stubs_of(serve)) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = processes_with(mark)
        stubs[0].suspend()  # a load that takes longer than Triton waits for it
        serve.kill()
    _, alive = psutil.wait_procs(left, timeout=120)
    assert not alive
    assert not list((tmp_path / "temporary").iterdir())
    assert not list(Path("/dev/shm").glob(f"triton_voice_{serve.pid}_*"))


def stubs_of(serve: subprocess.Popen[str]) -> list[psutil.Process]:
    return [p for p in family(serve.pid) if p.name().startswith("triton_python_b")]


def start_serve(
    log: Path, *options: str, only: str = "parakeet", **environment: str
) -> tuple[subprocess.Popen[str], str]:
    """Starts `serve` with one model; returns it and its gRPC endpoint once it is ready."""
    command = [*CLI, "serve", "--only", only, "--log-file", str(log), *FREE_PORTS, *options]
    serve = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    return serve, next_endpoint(serve)


def next_endpoint(serve: subprocess.Popen[str]) -> str:
    return read_until(serve, r"ready  gRPC (\S+)").group(1)


def read_until(serve: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    seen = ""
    while not (found := re.search(pattern, seen)):
        line = serve.stderr.readline()
        assert line, seen
        seen += line
    return found


@contextlib.contextmanager
def killed_on_failure(serve: subprocess.Popen[str]) -> Iterator[None]:
    """Waits for the end of `serve`, but not after a failed assertion."""
    with serve:
        try:
            yield
        except BaseException:
            serve.kill()
            raise


def kill_stub(serve: subprocess.Popen[str]) -> None:
    [stub] = stubs_of(serve)
    stub.kill()


def test_a_dead_model_ends_serve_and_its_clients_wait_for_nothing(tiny, tmp_path):
    serve, endpoint = start_serve(tmp_path / "log")

    async def talk() -> None:
        async with TritonVoice(endpoint) as voice, voice.open_stream() as stream:
            await stream.send(speechlike(0.3))
            waiting = asyncio.create_task(stream.send(np.zeros(16000 * 500, np.int16)))
            await asyncio.sleep(0.2)
            kill_stub(serve)
            with pytest.raises((ServerGone, ServerFault, ModelNotReady)):
                await asyncio.wait_for(waiting, 40)

    with serve:
        children = family(serve.pid)
        asyncio.run(talk())
        rest = serve.stderr.read()
    assert serve.returncode == 1
    assert "parakeet died" in rest
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_crashed_tritonserver_leaves_no_stub(tiny, tmp_path):
    serve, _ = start_serve(tmp_path / "log")
    with serve:
        children = family(serve.pid)
        [server] = [p for p in children if p.name() == "tritonserver"]
        server.kill()
        rest = serve.stderr.read()
    assert serve.returncode == 1
    assert "tritonserver ended by itself with code -9" in rest
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_dead_llm_engine_ends_serve(tiny, tmp_path):
    """vLLM's engine is a process of its own, behind the model's."""
    serve, _ = start_serve(tmp_path / "log", only="nemotron")
    with serve:
        children = family(serve.pid)
        [engine] = [p for p in children if "EngineCore" in " ".join(p.cmdline())]
        engine.kill()
        rest = serve.stderr.read()
    assert serve.returncode == 1
    assert "nemotron died" in rest
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_supervised_server_whose_model_dies_or_hangs_comes_back_where_it_was(tiny, tmp_path):
    """A model that hangs looks alive to Triton. Its callers get an error when it is given up, if not before."""
    serve, first = start_serve(tmp_path / "log", "--supervise", TRITON_VOICE_HANG_TIMEOUT_S="15")

    async def hear(freeze: bool) -> bool:
        async with TritonVoice(first) as voice, voice.open_stream(answer_timeout_s=600) as stream:
            await stream.send(speechlike(0.5))
            if freeze:
                stubs_of(serve)[0].suspend()
            return (await stream.end()).is_final

    with killed_on_failure(serve):
        kill_stub(serve)
        assert next_endpoint(serve) == first
        assert asyncio.run(hear(freeze=False))
        with pytest.raises((ServerGone, ServerFault, ModelNotReady)):
            asyncio.run(hear(freeze=True))
        read_until(serve, r"parakeet hangs: .* restarting")
        assert next_endpoint(serve) == first
        assert asyncio.run(hear(freeze=False))
        serve.send_signal(signal.SIGTERM)
        serve.stderr.read()
    assert serve.returncode == 0


def test_a_dead_llm_engine_is_replaced_under_supervision_and_no_caller_notices(tiny, tmp_path):
    """And a reply that would take minutes does not hold the stop up: its client is told."""
    serve, endpoint = start_serve(tmp_path / "log", "--supervise", only="parakeet,nemotron")

    async def talk() -> None:
        async with TritonVoice(endpoint) as voice, voice.open_stream() as stream:
            await stream.send(speechlike(0.5))
            with pytest.raises(InvalidInput):  # after which Triton would keep the model's process for ever
                async for _ in voice.chat_chunks({"messages": 7}):
                    pass
            former = [p for p in stubs_of(serve) if "/nemotron/" in " ".join(p.cmdline())]
            [engine] = [p for p in family(serve.pid) if "EngineCore" in " ".join(p.cmdline())]
            engine.kill()
            loaded = asyncio.create_task(asyncio.to_thread(read_until, serve, "nemotron ready again"))
            while not loaded.done():
                await stream.send(speechlike(0.5))  # the same stream, so the server behind it is not restarted
                await asyncio.sleep(0.5)
            await loaded
            assert not processes_left(former)
            assert (await stream.end()).is_final

    async def say_goodbye() -> None:
        async with TritonVoice(endpoint) as voice:
            told = False
            async for _ in voice.chat("Hello.", max_tokens=30000, ignore_eos=True):
                if not told:
                    serve.send_signal(signal.SIGTERM)
                    told = True

    with killed_on_failure(serve):
        asyncio.run(talk())
        with pytest.raises(ServerGone, match="the server is stopping"):
            asyncio.run(say_goodbye())
        serve.stderr.read()
    assert serve.returncode == 0


def test_a_place_that_cannot_be_written_is_named(tiny):
    done = run("serve", "--only", "parakeet", "--log-file", "/proc/nowhere/log", *FREE_PORTS)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "/proc/nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_named(tiny):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run("serve", "--grpc-port", port, "--http-port", "0", "--metrics-port", "0")
    assert done.returncode == 1
    assert f"gRPC port {port}" in done.stderr
    assert "--grpc-port" in done.stderr


def test_a_bad_checkpoint_is_named_and_nothing_is_left(tiny, tmp_path):
    bad = tmp_path / "broken.nemo"
    bad.write_bytes(b"nothing of the kind")
    mark = {"TRITON_VOICE_TEST_RUN": str(tmp_path)}  # inherited by every process that this run starts
    done = run("serve", "--only", "parakeet", "--parakeet", str(bad), *FREE_PORTS, env={**os.environ, **mark})
    assert done.returncode == 1
    assert "parakeet" in done.stderr
    assert str(bad) in done.stderr
    assert "Log:" in done.stderr
    assert not processes_with(mark)


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--only", "parakeat"], ["--only", "parakeet"]), (["--grpc-port", "99999"], ["--grpc-port"])],
)
def test_wrong_options_are_named(tiny, options, words):
    done = run("serve", *options)
    assert done.returncode == 1
    assert all(word in done.stderr for word in words)
    assert "Traceback" not in done.stderr


def test_a_models_folder_that_lacks_something_is_told(tmp_path):
    done = run("serve", "--models", str(tmp_path))
    assert done.returncode == 1
    assert "parakeet.nemo" in done.stderr


def test_the_demo_prints_one_json_object(server, tmp_path):
    wav = tmp_path / "reply.wav"
    done = run("demo", "--server", server.grpc, "--fast", "--json", "-o", str(wav))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) >= {"transcript", "partials", "reply", "audio_seconds", "sample_rate", "latency_ms"}
    assert result["transcript"]
    assert len(result["partials"]) > 1
    assert result["reply"]
    assert result["sample_rate"] == 22050
    assert set(result["latency_ms"]) == {"first_partial", "final_transcript", "first_token", "first_audio", "total"}
    audio, rate = soundfile.read(wav)
    assert rate == 22050
    assert len(audio) / rate == pytest.approx(result["audio_seconds"], abs=0.01)
    assert audio.std() > 0


def test_the_demo_takes_another_wav(server, tmp_path):
    wav = tmp_path / "mine.wav"
    soundfile.write(wav, speechlike(1.0, seed=4), 16000, subtype="PCM_16")
    done = run("demo", str(wav), "--server", server.grpc, "--fast", "-o", str(tmp_path / "reply.wav"))
    assert done.returncode == 0, done.stderr
    assert "final transcript" in done.stdout


def test_transcribe_and_speak_through_a_running_server(server, tmp_path):
    wav = tmp_path / "speech.wav"
    spoken = run("speak", "Hello there.", "-o", str(wav), "--server", server.grpc)
    assert spoken.returncode == 0, spoken.stderr
    assert soundfile.info(wav).samplerate == 22050
    heard = run("transcribe", str(wav), "--server", server.grpc)
    assert heard.returncode == 0, heard.stderr
    assert heard.stdout.strip()
    raw = tmp_path / "speech.raw"
    raw.write_bytes(soundfile.read(wav, dtype="int16")[0].repeat(2).tobytes())  # two channels, both the same
    as_raw = run("transcribe", str(raw), "--raw", "22050:2", "--server", server.grpc)
    assert as_raw.stdout == heard.stdout, as_raw.stderr
    twice = run("transcribe", str(wav), str(wav), "--json", "--server", server.grpc)
    records = [json.loads(line) for line in twice.stdout.splitlines()]
    assert [record["text"] for record in records] == [heard.stdout.strip()] * 2
    assert records[0]["words"][0].keys() == {"word", "start", "end", "confidence"}


@pytest.mark.parametrize("name", ["missing.wav", "text.wav"])
def test_a_file_that_is_no_audio_is_named(tmp_path, name):
    (tmp_path / "text.wav").write_text("no audio")
    done = run("transcribe", str(tmp_path / name))
    assert done.returncode == 1
    assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_no_server_is_one_sentence(unused_tcp_port):
    done = run("speak", "Hello.", "--server", f"127.0.0.1:{unused_tcp_port}", "-o", os.devnull)
    assert done.returncode == 1
    assert "ServerGone" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_shows_what_is_here(server):
    done = run("doctor", "--server", server.grpc, env={**os.environ, "COLUMNS": "300"})
    assert done.returncode == 0, done.stdout
    for word in ("tritonserver", "numpy", "torch", "nemo_toolkit", "vllm", "all models ready"):
        assert word in done.stdout
