"""Checkpoints for every test: tiny, random weights, made once into a cache."""

from __future__ import annotations

import pytest

from triton_voice import checkpoints


@pytest.fixture(scope="session")
def tiny() -> checkpoints.Checkpoints:
    """The tiny checkpoints' paths; made on first use (about a minute), found afterwards."""
    return checkpoints.make("tiny")
