"""Batched, exact, cache-aware streaming recognition with NeMo's FastConformer-RNNT. Imports no Triton.

One engine thread owns the model. Host side: `Stream` cuts each caller's audio into chunks, `Engine` schedules them.
Device side: `StepRunner` turns one batch of chunks, each of another caller, into tokens, in one pass: `LogMel`,
`WindowedSubsampling`, NeMo's conformer layers with caches out of `Slots`, and `GreedyDecoder`.
"""

from parakeet_engine.checkpoint import Checkpoint, Lookahead
from parakeet_engine.engine import Engine
from parakeet_engine.errors import (
    AsrError,
    CheckpointError,
    InvalidRequest,
    SequenceLost,
    SettingsError,
    Unavailable,
)
from parakeet_engine.observer import Observer
from parakeet_engine.requests import AudioRequest, Transcript, Word
from parakeet_engine.settings import EngineSettings

__all__ = [
    "AsrError",
    "AudioRequest",
    "Checkpoint",
    "CheckpointError",
    "Engine",
    "EngineSettings",
    "InvalidRequest",
    "Lookahead",
    "Observer",
    "SequenceLost",
    "SettingsError",
    "Transcript",
    "Unavailable",
    "Word",
]
