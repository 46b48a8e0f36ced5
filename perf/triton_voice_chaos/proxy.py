"""A TCP proxy between clients and a server that can cut connections at random."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading

CHUNK_BYTES = 1 << 16
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: close sends RST and drops what is on its way."""


class CuttingProxy:
    """Passes bytes on, and while `mean_life_s` is set resets each connection after a random time.

    It runs on an event loop in a thread of its own.

    Args:
        target: `host:port` of the server.
        seed: Of the random times.
        source: Address of this machine from which the server sees the connections come; None: as the system chooses.
    """

    def __init__(self, target: str, seed: int = 0, source: str | None = None):
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._source = (source, 0) if source else None
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._cutter: asyncio.Task[None] | None = None
        self.cuts = 0
        self.url = ""

    def __enter__(self) -> CuttingProxy:
        """Listens on a free port of the loopback interface."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(self, *exc: object) -> None:
        """Closes every connection and the port."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self, mean_life_s: float | None) -> None:
        """Begins to cut connections, each after a random time (exponential, of this mean); None stops it."""
        asyncio.run_coroutine_threadsafe(self._set_cutter(mean_life_s), self._loop).result()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            there, back = await asyncio.open_connection(*self._target, local_addr=self._source)
        except OSError:
            writer.close()
            self._connections.discard(task)
            return
        pair = (writer, back)
        self._pairs.add(pair)
        try:
            await asyncio.gather(_pump(reader, back), _pump(there, writer))
        finally:
            self._pairs.discard(pair)
            self._connections.discard(task)
            for end in pair:
                end.close()

    async def _set_cutter(self, mean_life_s: float | None) -> None:
        if self._cutter is not None:
            self._cutter.cancel()
            self._cutter = None
        if mean_life_s is not None:
            self._cutter = asyncio.create_task(self._cut_forever(mean_life_s))

    async def _cut_forever(self, mean_life_s: float) -> None:
        step_s = mean_life_s / 20
        while True:
            await asyncio.sleep(step_s)
            for pair in list(self._pairs):
                if self._random.random() < step_s / mean_life_s:
                    self._pairs.discard(pair)
                    self.cuts += 1
                    for end in pair:
                        end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                        end.transport.abort()

    async def _close(self) -> None:
        await self._set_cutter(None)
        assert self._server is not None
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(CHUNK_BYTES):
            sink.write(data)
            await sink.drain()
    with contextlib.suppress(OSError, RuntimeError):
        sink.close()
