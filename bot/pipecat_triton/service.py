"""What the three services share: the connection's life, and why a call failed in Pipecat's categories."""

from __future__ import annotations

from typing import Any

from pipecat.frames.frames import CancelFrame, EndFrame
from pipecat.processors.frame_processor import FrameProcessorSetup
from pipecat.services.ai_service import AIService
from pipecat.services.settings import ServiceSettings
from pipecat.utils.errors import ErrorCategory

from triton_voice import (
    InvalidInput,
    ModelNotReady,
    SequenceLost,
    ServerFault,
    ServerFull,
    ServerGone,
    TritonVoice,
    UnknownModel,
)

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


class TritonService(AIService):
    """Mixin of the services, in front of Pipecat's own base: holds the connection and classifies the SDK's exceptions.

    The connection is there between `setup` and the end, however the end comes; a service that holds more overrides
    `_close`.

    Pipecat takes INVALID_REQUEST for permanent and gives the service no more work until its settings change. That is
    right for an unknown voice or model. It is wrong for one odd text among good ones, so a request that is refused
    although the same settings have worked before is the application's (`ErrorCategory.APPLICATION`), which costs the
    service nothing. The other categories are transient: the next request tries again.
    """

    _settings_worked = False
    """Whether a request has succeeded with the settings as they are."""

    def __init__(self, *, url: str, conversation: str | None = None, **kwargs: Any) -> None:
        """Initialize the service.

        Args:
            url: Endpoint of the server's gRPC.
            conversation: An id for the server's log lines about this conversation's requests.
            **kwargs: Passed to Pipecat's own base.
        """
        super().__init__(**kwargs)
        self._url = url
        self._conversation = conversation
        self._connection: TritonVoice | None = None

    @property
    def _voice(self) -> TritonVoice:
        """The connection; only between `setup` and the end."""
        assert self._connection is not None, "the service is not set up"
        return self._connection

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Set up the service.

        Args:
            setup: Configuration object containing setup parameters.
        """
        await super().setup(setup)
        self._connection = TritonVoice(self._url, conversation=self._conversation)

    async def stop(self, frame: EndFrame) -> None:
        """Stop when all has been handed on.

        Args:
            frame: The end frame.
        """
        await super().stop(frame)
        await self._close()

    async def cancel(self, frame: CancelFrame) -> None:
        """Stop at once.

        Args:
            frame: The cancel frame.
        """
        await super().cancel(frame)
        await self._close()

    async def cleanup(self) -> None:
        """Release what is still held."""
        await super().cleanup()
        await self._close()

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _update_settings(self, delta: ServiceSettings) -> dict[str, Any]:
        changed = await super()._update_settings(delta)
        if changed:
            self._settings_worked = False
        return changed

    def _classify_error(self, exception: Exception) -> ErrorCategory | None:
        category = next((category for kind, category in _CATEGORIES if isinstance(exception, kind)), None)
        if category is ErrorCategory.INVALID_REQUEST and self._settings_worked:
            # A model that was there and is gone is being exchanged; a text is only a text.
            return ErrorCategory.SERVER if isinstance(exception, UnknownModel) else ErrorCategory.APPLICATION
        return category
