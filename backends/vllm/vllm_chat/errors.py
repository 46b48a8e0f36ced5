"""What can go wrong, named by who can mend it."""

from __future__ import annotations


class BackendError(Exception):
    """Base of every error that a client or an operator sees; its text is one plain sentence."""


class InvalidRequest(BackendError):
    """The request asks for something impossible; the sentence names the field and what it allows."""


class Unavailable(BackendError):
    """The request is fine but cannot be taken now; the client may try again later."""


class Cancelled(BackendError):
    """The client went away or cancelled; nobody reads this."""


class EngineFailed(BackendError):
    """The engine broke while it worked on the request."""


class SettingsError(BackendError):
    """The model cannot be loaded as it is configured; the sentence names the setting."""


class LoadFailed(BackendError):
    """vLLM could not load the model."""
