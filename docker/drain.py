"""Waits until nobody talks to this server any more: what a container runs before it is stopped (Kubernetes' preStop).

From its start on, healthcheck.py calls this replica not ready, so that a balancer sends new streams elsewhere. Streams
that are open go on. It ends when none is left, or after `--timeout`; the container is then sent SIGTERM. Exit code 1
says that streams were left. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import urllib.request

from healthcheck import DRAINING, HTTP_TIMEOUT_S, container_start, port

ACTIVE = (
    "parakeet_active_streams",
    "magpie_active_streams",
    "magpie_queued_requests",
    "triton_voice_llm_requests_running",
)
"""Gauges of the metrics page that are zero when nobody is served."""
POLL_S = 1.0
QUIET_POLLS = 3
"""One poll may fall between two requests of one conversation."""


def at_work(page: str) -> dict[str, float]:
    """The gauges above zero on a page of Prometheus metrics; a gauge that is not there counts as zero."""
    found: dict[str, float] = {}
    for name in ACTIVE:
        values = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)", page, re.MULTILINE)
        if total := sum(map(float, values)):
            found[name] = total
    return found


def metrics() -> str | None:
    """The metrics page, or None when there is no server any more."""
    url = f"http://127.0.0.1:{port('METRICS', 8002)}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_S) as answer:
            return answer.read().decode()
    except OSError:
        return None


def drain(timeout_s: float, settle_s: float) -> dict[str, float]:
    """Marks this replica as going and waits for its streams to end.

    Args:
        timeout_s: How long to wait at most, in seconds.
        settle_s: How long balancers may take to notice; new streams may still arrive meanwhile.

    Returns:
        What was still at work when the time was up.
    """
    DRAINING.write_text(container_start())
    started = time.monotonic()
    quiet = 0
    while True:
        page = metrics()
        if page is None:
            return {}
        busy = at_work(page)
        waited = time.monotonic() - started
        quiet = 0 if busy else quiet + 1
        if quiet >= QUIET_POLLS and waited >= settle_s:
            return {}
        if waited >= timeout_s:
            return busy
        time.sleep(POLL_S)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timeout", type=float, default=float(os.environ.get("TRITON_VOICE_DRAIN_S") or 120))
    parser.add_argument("--settle", type=float, default=5.0, help="Seconds that balancers may take to notice.")
    arguments = parser.parse_args()
    left = drain(arguments.timeout, arguments.settle)
    print("drained" if not left else "still at work: " + ", ".join(f"{n} {v:g}" for n, v in left.items()))
    sys.exit(bool(left))


if __name__ == "__main__":
    main()
