"""Why a call failed, in Pipecat's categories."""

from __future__ import annotations

from pipecat.processors.frame_processor import FrameProcessor
from pipecat.utils.errors import ErrorCategory

from triton_voice import InvalidInput, ModelNotReady, SequenceLost, ServerFault, ServerFull, ServerGone, UnknownModel

#: The first class that fits counts, so a subclass stands before its base.
_CATEGORIES: tuple[tuple[type[Exception], ErrorCategory], ...] = (
    (UnknownModel, ErrorCategory.INVALID_REQUEST),
    (InvalidInput, ErrorCategory.INVALID_REQUEST),
    (ModelNotReady, ErrorCategory.SERVER),
    (ServerFault, ErrorCategory.SERVER),
    (ServerFull, ErrorCategory.RATE_LIMIT),
    (SequenceLost, ErrorCategory.CONNECTIVITY),
    (ServerGone, ErrorCategory.CONNECTIVITY),
)


class TritonErrors(FrameProcessor):
    """Mixin of the services: classifies the SDK's exceptions.

    Pipecat takes INVALID_REQUEST for permanent and gives the service no more work until its settings change. That is
    right for an unknown voice or model. It is wrong for one odd text among good ones, so a request that is refused
    although the same settings have worked before is the application's (`ErrorCategory.APPLICATION`), which costs the
    service nothing. The other categories are transient: the next request tries again.
    """

    _settings_worked = False
    """Whether a request has succeeded with the settings as they are; a service clears it when they change."""

    def _classify_error(self, exception: Exception) -> ErrorCategory | None:
        category = next((category for kind, category in _CATEGORIES if isinstance(exception, kind)), None)
        if category is ErrorCategory.INVALID_REQUEST and self._settings_worked:
            # A model that was there and is gone is being exchanged; a text is only a text.
            return ErrorCategory.SERVER if isinstance(exception, UnknownModel) else ErrorCategory.APPLICATION
        return category
