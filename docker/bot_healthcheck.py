"""Asks the bot whether somebody could talk to it now: its page answers, and behind it all three models are ready.

Exit code 0: yes; 1: no, with a line that says why. Only the standard library is used.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import urllib.request

TIMEOUT_S = 8.0


def problem() -> str | None:
    """What is wrong, in words."""
    tls = bool(os.environ.get("TRITON_VOICE_BOT_TLS_CERT"))
    host = os.environ.get("TRITON_VOICE_BOT_HOST") or "127.0.0.1"
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    url = f"{'https' if tls else 'http'}://{host}:{os.environ.get('TRITON_VOICE_BOT_PORT') or 7860}/api/health"
    # The certificate is for the name that browsers use, which is not the one that is asked here.
    context = ssl._create_unverified_context() if tls else None
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S, context=context) as answer:
            health = json.load(answer)
    except (OSError, ValueError) as error:
        return f"the page does not answer: {error}"
    missing = [name for name, ready in health["models"].items() if not ready]
    return None if health["status"] == "ok" else f"waits for {', '.join(missing) or 'the server'}"


def main() -> None:
    """Entry point."""
    found = problem()
    print(found or "ready")
    sys.exit(found is not None)


if __name__ == "__main__":
    main()
