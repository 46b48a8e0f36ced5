"""Everything that the engine refuses, as types that the serving layer can map to status codes."""

from __future__ import annotations


class MagpieError(Exception):
    """Base of all errors raised on purpose by this engine; the message is meant for the user."""


class CheckpointError(MagpieError):
    """A checkpoint cannot be found, read or served; says which one, why, and which setting names it."""


class SettingsError(MagpieError):
    """A setting has a value that it cannot have; says which one and what is allowed."""


class InvalidRequestError(MagpieError):
    """A request asks for something that this checkpoint or this engine does not offer; says what is allowed."""


class QueueFullError(MagpieError):
    """All slots speak and the queue is full; try again later."""


class EngineStoppedError(MagpieError):
    """The engine has been shut down, or is being shut down."""


class EngineBrokenError(MagpieError):
    """An error has stopped the engine for good, such as a device that is lost: only a new process helps."""
