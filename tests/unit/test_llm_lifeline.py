"""The engine's process must not outlive a parent that was killed."""

import multiprocessing
import os
import signal
import time

import pytest

WAIT_S = 20


def child(pipe):
    import vllm_chat.lifeline  # noqa: F401  (what vLLM does in the engine's process)

    pipe.send(os.getpid())
    time.sleep(10 * WAIT_S)


def parent(pipe):
    # Spawned, like vLLM's engine.
    multiprocessing.get_context("spawn").Process(target=child, args=(pipe,)).start()
    time.sleep(10 * WAIT_S)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.timeout(60)
def test_the_engine_dies_with_its_parent():
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    middle = context.Process(target=parent, args=(theirs,))
    middle.start()
    assert mine.poll(WAIT_S)
    engine = mine.recv()
    assert alive(engine)
    os.kill(middle.pid, signal.SIGKILL)
    middle.join()
    deadline = time.monotonic() + WAIT_S
    while alive(engine) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(engine)
