"""Clients that send nonsense: wrong tensors, huge messages, broken JSON, streams left half open, random bytes.

Each kind runs in a process of its own. What they get back is counted, because garbage must be refused with an error and
not left unanswered.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import random
import signal
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

ANSWER_LIMIT_S = 60.0
"""An answer, an error too, must come within this."""
PAUSE_S = 0.02
HUGE_SAMPLES = 1 << 24
"""32 MiB of audio, 17 minutes: more than one request may have."""
HUGE_TEXT_BYTES = 1 << 22
MAX_HALF_OPEN = 24
"""Sequences begun and never ended, each of which holds a slot until it has been silent for long enough."""
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass(frozen=True)
class Ports:
    """Where the flood goes, all on 127.0.0.1."""

    grpc: int
    http: int
    metrics: int


class Flood:
    """Starts all kinds of garbage clients for a while.

    Args:
        ports: The server's.
        seconds: How long they go on.
        kinds: Names of `KINDS`.
    """

    def __init__(self, ports: Ports, seconds: float, kinds: Iterable[str] | None = None):
        self._ports = ports
        self._seconds = seconds
        self._kinds = tuple(kinds or KINDS)

    def run(self) -> dict[str, dict[str, int]]:
        """Runs them to the end; returns what came back, by kind. `unanswered` and `died` are what may not happen."""
        spawn = multiprocessing.get_context("spawn")
        running = []
        for name in self._kinds:
            ours, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(target=_garbage, args=(name, self._ports, self._seconds, theirs), daemon=True)
            process.start()
            theirs.close()
            running.append((name, process, ours))
        seen = {}
        for name, process, pipe in running:
            try:
                seen[name] = dict(pipe.recv()) if pipe.poll(self._seconds + 2 * ANSWER_LIMIT_S) else {"died": 1}
            except EOFError:
                seen[name] = {"died": 1}
            process.terminate()
            process.join()
        return seen


def _garbage(name: str, ports: Ports, seconds: float, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    counts: Counter[str] = Counter()
    KINDS[name](ports, time.monotonic() + seconds, counts)
    pipe.send(counts)


def _tensor(name: str, array: np.ndarray, dtype: str) -> triton_grpc.InferInput:
    tensor = triton_grpc.InferInput(name, list(array.shape), dtype)
    tensor.set_data_from_numpy(array)
    return tensor


def _text(name: str, value: bytes) -> triton_grpc.InferInput:
    return _tensor(name, np.array([value], dtype=object), "BYTES")


def _refused(error: InferenceServerException) -> str:
    status = (error.status() or "error").removeprefix("StatusCode.")
    return "unanswered" if status == "DEADLINE_EXCEEDED" else status


def _unary(ports: Ports, until: float, counts: Counter[str], make: Callable[[random.Random], dict[str, Any]]) -> None:
    chance = random.Random(1)
    with contextlib.closing(triton_grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}")) as client:
        while time.monotonic() < until:
            try:
                client.infer(**make(chance), client_timeout=ANSWER_LIMIT_S)
                counts["answered"] += 1
            except InferenceServerException as error:
                counts[_refused(error)] += 1
            time.sleep(PAUSE_S)


def _wrong_tensors(ports: Ports, until: float, counts: Counter[str]) -> None:
    """Wrong types, names, shapes, parameters and models, on sequences that are never begun."""
    audio = np.zeros((1, 160), np.int16)

    def make(chance: random.Random) -> dict[str, Any]:
        wrong: list[tuple[triton_grpc.InferInput, dict[str, Any]]] = [
            (_tensor("AUDIO", audio.astype(np.float32), "FP32"), {}),
            (_tensor("SOUND", audio, "INT16"), {}),
            (_tensor("AUDIO", np.zeros((1, 2, 3), np.int16), "INT16"), {}),
            (_tensor("AUDIO", audio, "INT16"), {"parameters": {"latency_ms": 7}}),
            (_tensor("AUDIO", audio, "INT16"), {"parameters": {"language": "tlh"}}),
            (_tensor("AUDIO", audio, "INT16"), {"parameters": {"nonsense": "yes"}}),
            (_tensor("AUDIO", audio, "INT16"), {"sequence_start": False}),
            (_tensor("AUDIO", audio, "INT16"), {"sequence_id": 0}),
            (_tensor("AUDIO", audio, "INT16"), {"model_name": "nobody"}),
            (_text("TEXT", b"unary on a decoupled model"), {"model_name": "magpie"}),
        ]
        tensor, extra = chance.choice(wrong)
        whole = {"model_name": "parakeet", "sequence_id": uuid.uuid4().hex, "sequence_start": True}
        return {**whole, "sequence_end": True, "timeout": 2_000_000, "inputs": [tensor], **extra}

    _unary(ports, until, counts, make)


def _huge_messages(ports: Ports, until: float, counts: Counter[str]) -> None:
    """Audio longer than one request may have."""
    audio = np.zeros((1, HUGE_SAMPLES), np.int16)

    def make(chance: random.Random) -> dict[str, Any]:
        return {
            "model_name": "parakeet",
            "inputs": [_tensor("AUDIO", audio, "INT16")],
            "sequence_id": uuid.uuid4().hex,
            "sequence_start": True,
            "sequence_end": True,
            "timeout": 2_000_000,
        }

    _unary(ports, until, counts, make)


def _broken_json(ports: Ports, until: float, counts: Counter[str]) -> None:
    """Chat requests that are no JSON, no chat, or megabytes of nothing; texts that are no UTF-8 or endless.

    One request a stream, as the SDK does it: Triton 2.51 aborts when several requests of one stream fail at the same
    time (an assertion of gRPC's, `!byte_buffer->Valid()`), which no model can prevent.
    """
    chance = random.Random(2)
    values = (b"{", b"[1,2]", b'{"messages": 7}', b"\xff\xfe", b'"' * HUGE_TEXT_BYTES, chance.randbytes(999))
    with contextlib.closing(triton_grpc.InferenceServerClient(f"127.0.0.1:{ports.grpc}")) as client:
        while time.monotonic() < until:
            model, tensor = chance.choice([("nemotron", "chat_request"), ("magpie", "TEXT")])
            value = chance.choice(values)
            answers: queue.SimpleQueue[InferenceServerException | None] = queue.SimpleQueue()
            client.start_stream(
                lambda result, error, answers=answers: answers.put(error), stream_timeout=2 * ANSWER_LIMIT_S
            )
            try:
                client.async_stream_infer(model, [_text(tensor, value if model == "nemotron" else b"\xff" + value)])
                counts["answered" if answers.get(timeout=ANSWER_LIMIT_S) is None else "refused"] += 1
            except queue.Empty:
                counts["unanswered"] += 1
            except InferenceServerException:
                counts["stream broken"] += 1
            finally:
                client.stop_stream(cancel_requests=True)
            time.sleep(PAUSE_S)


def _half_open(ports: Ports, until: float, counts: Counter[str]) -> None:
    """Sequences that begin and never end, and replies that are asked for and never read."""
    url = f"127.0.0.1:{ports.grpc}"
    request = b'{"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 400}'
    with contextlib.closing(triton_grpc.InferenceServerClient(url)) as client:
        while time.monotonic() < until:
            if counts["sequences left open"] < MAX_HALF_OPEN:
                with contextlib.suppress(InferenceServerException):
                    silence = _tensor("AUDIO", np.zeros((1, 1600), np.int16), "INT16")
                    client.infer("parakeet", [silence], sequence_id=uuid.uuid4().hex, sequence_start=True)
                    counts["sequences left open"] += 1
            leaver = triton_grpc.InferenceServerClient(url)
            leaver.start_stream(lambda result, error: None)
            with contextlib.suppress(InferenceServerException):  # the stream has already failed
                leaver.async_stream_infer("nemotron", [_text("chat_request", request)])
                leaver.async_stream_infer("magpie", [_text("TEXT", b"Nobody listens to this sentence to its end.")])
            time.sleep(0.2)
            leaver.stop_stream(cancel_requests=True)
            leaver.close()
            counts["replies left"] += 2


def _random_bytes(ports: Ports, until: float, counts: Counter[str]) -> None:
    """Noise, and half a greeting followed by silence, on all three ports."""
    chance = random.Random(3)
    silent: list[socket.socket] = []
    while time.monotonic() < until:
        port = chance.choice([ports.grpc, ports.http, ports.metrics])
        head = chance.choice(
            [b"", HTTP2_PREFACE, b"POST /v2/models/parakeet/infer HTTP/1.1\r\nContent-Length: 99999\r\n\r\n"]
        )
        with contextlib.suppress(OSError):
            connection = socket.create_connection(("127.0.0.1", port), timeout=1.0)
            connection.sendall(head + chance.randbytes(chance.randrange(1, 4096)))
            counts["connections"] += 1
            if len(silent) < MAX_HALF_OPEN:
                silent.append(connection)
            else:
                connection.close()
        time.sleep(PAUSE_S)
    for connection in silent:
        connection.close()


KINDS: dict[str, Callable[[Ports, float, Counter[str]], None]] = {
    "wrong tensors": _wrong_tensors,
    "huge messages": _huge_messages,
    "broken JSON": _broken_json,
    "half-open streams": _half_open,
    "random bytes": _random_bytes,
}
