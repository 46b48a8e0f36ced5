"""A SIGTERM is heard while Python's main thread is somewhere in C, as it is in Triton's stub."""

import signal
import subprocess
import sys
import threading

from triton_voice.paths import project_root
from vllm_chat.farewell import Farewell

SCRIPT = """
import ctypes, os
from vllm_chat.farewell import Farewell

def leave():
    os.write(1, b"heard")
    os._exit(0)

farewell = Farewell(leave)
mutex = ctypes.create_string_buffer(64)
libc = ctypes.CDLL(None)
print("ready", flush=True)
libc.pthread_mutex_lock(mutex)
libc.pthread_mutex_lock(mutex)  # for ever: no signal ends this wait, so no handler in Python ever runs
"""


def test_a_sigterm_is_heard_though_the_main_thread_runs_no_python():
    path = {"PYTHONPATH": str(project_root() / "backends" / "vllm")}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, env=path) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            assert process.stdout.read() == "heard"
            process.wait(60)
        finally:
            process.kill()
    assert process.returncode == 0


def test_outside_the_main_thread_it_does_nothing():
    made = []
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: made.append(Farewell(lambda: None)))
    thread.start()
    thread.join()
    made[0].close()
    assert signal.getsignal(signal.SIGTERM) == before
