"""Checkpoints for every test: tiny, random weights, made once into a cache."""

from __future__ import annotations

import os
import signal

import pytest

# Several models and the test share the cores; OpenMP's threads would wait on each other. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from triton_voice import checkpoints

# A shell's background job is born deaf to Ctrl-C, and so would be every program that these tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny() -> checkpoints.Checkpoints:
    """The tiny checkpoints' paths; made on first use (about a minute), found afterwards."""
    return checkpoints.make("tiny")
