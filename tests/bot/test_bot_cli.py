"""`triton-voice bot` as a program."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import httpx
import pytest

PATIENCE_S = 120
PROGRAM = Path(sys.executable).with_name("triton-voice")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
async def test_it_serves_the_page_and_stops_in_order(name):
    command = [PROGRAM, "bot", "--server", "127.0.0.1:9", "--port", "0"]
    program = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        line = (await asyncio.wait_for(program.stderr.readline(), PATIENCE_S)).decode()
        url = re.search(r"ready +(http://localhost:\d+)", line).group(1)
        async with httpx.AsyncClient(base_url=url) as http:
            assert (await http.get("/")).status_code == 200
            assert (await http.get("/api/health")).json()["status"] == "waiting"
        program.send_signal(getattr(signal, name))
        _, rest = await asyncio.wait_for(program.communicate(), PATIENCE_S)
        assert "Traceback" not in rest.decode()
        assert program.returncode == 0
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
