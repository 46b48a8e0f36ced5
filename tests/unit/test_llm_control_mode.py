"""Whether Triton lets models be unloaded, from the server's own command line."""

import subprocess
import sys

import pytest

from vllm_chat.control_mode import unloads_on_request


@pytest.mark.parametrize(
    ("flags", "explicit"),
    [
        (["--model-control-mode=explicit"], True),
        (["--http-port=1", "--model-control-mode", "explicit"], True),
        (["--model-control-mode=poll"], False),
        ([], False),
    ],
)
def test_the_mode_is_read_from_the_running_server(flags, explicit):
    program = "print('up', flush=True); input()"
    server = subprocess.Popen([sys.executable, "-c", program, *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        server.stdout.readline()  # until then the kernel may not show its command line yet
        assert unloads_on_request(server.pid) is explicit
    finally:
        server.kill()
        server.wait()


def test_a_server_that_is_gone_unloads_nothing():
    assert not unloads_on_request(2**22 + 1)  # above the largest process id
