"""What a server does while it is measured: its metrics and its processor time."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections import defaultdict
from dataclasses import dataclass, field

import psutil

PUBLISH_S = 0.8
"""Models publish their metrics every half second; reading later than this after an event sees it."""
_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{.*\})? (\S+)$")


@dataclass
class Metrics:
    """Prometheus samples, added up over their labels.

    Attributes:
        totals: Value by name; empty if the server shows no metrics.
    """

    totals: dict[str, float] = field(default_factory=dict)

    @classmethod
    def scrape(cls, url: str | None) -> Metrics:
        """Reads an endpoint; one that cannot be read gives no samples."""
        if url is None:
            return cls()
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, OSError):
            return cls()
        totals: dict[str, float] = defaultdict(float)
        for line in text.splitlines():
            if found := _SAMPLE.match(line):
                totals[found.group(1)] += float(found.group(2))
        return cls(dict(totals))

    def mean_since(self, before: Metrics, histogram: str) -> float | None:
        """Returns the mean of what a histogram observed since an earlier reading; None if it observed nothing."""
        count = self.since(before, f"{histogram}_count")
        return self.since(before, f"{histogram}_sum") / count if count > 0 else None

    def since(self, before: Metrics, name: str) -> float:
        """Returns how much a counter grew since an earlier reading."""
        return self.totals.get(name, 0.0) - before.totals.get(name, 0.0)


class CpuMeter:
    """Processor time of a server on this machine and of every process that it started.

    Args:
        url: `host:port` that the server listens on. One on another machine, or of another user, is not seen.
    """

    def __init__(self, url: str):
        self._processes = listener_family(url)
        self.reset()

    def reset(self) -> None:
        """Counts from now on."""
        self._start = self._seconds()
        self._wall = time.monotonic()

    def percent(self) -> float | None:
        """Returns the processor time since the last `reset`, in percent of one core; None if it is not seen."""
        if not self._processes:
            return None
        return round(100 * (self._seconds() - self._start) / (time.monotonic() - self._wall), 1)

    def _seconds(self) -> float:
        total = 0.0
        for process in self._processes:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system
        return total


def listener_family(url: str) -> list[psutil.Process]:
    """Returns the process that listens on `host:port` and all its children; none if it is not seen from here."""
    host, _, port = url.rpartition(":")
    if host not in ("127.0.0.1", "localhost", "0.0.0.0", "[::1]", "::1"):
        return []
    try:
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr.port == int(port)
            if listens and connection.pid is not None:
                server = psutil.Process(connection.pid)
                return [server, *server.children(recursive=True)]
    except psutil.Error:
        pass
    return []
