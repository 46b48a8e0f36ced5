"""The random-weight Magpie and codec checkpoints."""

import hashlib

import pytest

from triton_voice.checkpoints import magpie

TINY_MB = 12


def digest(paths):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    first = magpie.make(tmp_path / "first", "tiny")
    again = magpie.make(tmp_path / "again", "tiny")
    other = magpie.make(tmp_path / "other", "tiny", seed=1)
    assert [path.name for path in first] == ["magpie.nemo", "codec.nemo"]
    assert digest(first) == digest(again)
    assert not set(digest(first)) & set(digest(other))
    assert sum(path.stat().st_size for path in first) < TINY_MB * 1e6


def test_an_unknown_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown size 'huge' .* tiny, full"):
        magpie.make(tmp_path, "huge")
