"""Speech to text: one stream of the server's recogniser per segment of speech."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from loguru import logger
from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InterimTranscriptionFrame,
    StartFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.services.settings import STTSettings
from pipecat.services.stt_service import STTService
from pipecat.transcriptions.language import Language
from pipecat.turns.eager_end_of_turn_mixin import EagerEndOfTurnSTTServiceMixin
from pipecat.utils.time import time_now_iso8601
from pipecat.utils.tracing.service_decorators import traced_stt
from pipecat.utils.types import NOT_GIVEN, NotGiven, assert_given

from pipecat_triton import tracing
from pipecat_triton.segment import BYTES_PER_SAMPLE, Segment
from pipecat_triton.service import TritonService
from triton_voice import DEFAULT_URL, ModelNotReady, SequenceLost, ServerGone, Transcript

DRAIN_TIMEOUT_S = 5.0
"""How long the pipeline's end waits for the last transcripts."""
TTFS_P99_LATENCY_S = 0.4
"""End of speech to final transcript: 0.2 s until the VAD reports it and 0.16 s for the answer, see the README."""


@dataclass
class TritonSTTSettings(STTSettings):
    """Settings of `TritonSTTService`; a change applies from the next segment of speech.

    Parameters:
        model: Name of the recogniser on the server.
        language: For recognisers that know several; None takes the server's default.
        latency_ms: How far the recogniser looks ahead: one of 80, 160, 560 and 1120 for the English model. None takes
            the server's default.
    """

    latency_ms: int | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)


class TritonSTTService(TritonService, EagerEndOfTurnSTTServiceMixin, STTService):
    """Streaming speech to text by the `parakeet` model of a triton-voice server.

    Each segment of speech, as the pipeline's VAD sees it, is one stream of the recogniser: it begins with the audio
    before the VAD noticed (`pre_roll_ms`), gives interim transcripts while the user speaks, and is closed when the VAD
    reports the pause, so that its `TranscriptionFrame` arrives marked as finalized. `TranscriptionFrame.result` is the
    SDK's `Transcript`, whose words carry times and confidence.

    The audio of a segment is kept until it is recognised. A stream that the server lost is begun anew with it; when the
    server is away it is tried again at the end of the segment. If that fails too, an error is pushed, and the next
    segment tries again.

    The pipeline needs a VAD (`LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer())`).
    """

    Settings = TritonSTTSettings
    _settings: TritonSTTSettings

    def __init__(
        self,
        *,
        url: str = DEFAULT_URL,
        conversation: str | None = None,
        pre_roll_ms: int = 500,
        answer_timeout_s: float = 5.0,
        eager_transcripts: bool = False,
        ttfs_p99_latency: float | None = TTFS_P99_LATENCY_S,
        settings: TritonSTTSettings | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize the service.

        Args:
            url: `host:port` of the server's gRPC endpoint.
            conversation: An id for the server's log lines about this conversation's requests.
            pre_roll_ms: Audio before the VAD's start that belongs to the segment, in milliseconds. The VAD tells about
                a start only after 200 ms of it.
            answer_timeout_s: How long the server may take over a chunk before the segment counts as lost.
            eager_transcripts: Whether to push an `EagerTranscriptionFrame` when the VAD reports a pause, for
                `EagerTurnAnalyzerUserTurnStopStrategy`.
            ttfs_p99_latency: P99 latency from speech end to final transcript, in seconds.
            settings: Runtime-updatable settings.
            **kwargs: Passed to `STTService`.
        """
        default_settings = self.Settings(model="parakeet", language=None, latency_ms=None)
        if settings is not None:
            default_settings.apply_update(settings)
        super().__init__(
            url=url,
            conversation=conversation,
            settings=default_settings,
            ttfs_p99_latency=ttfs_p99_latency,
            enable_eager_end_of_turn=eager_transcripts,
            **kwargs,
        )
        self._pre_roll_ms = pre_roll_ms
        self._answer_timeout_s = answer_timeout_s
        self._worker: asyncio.Task | None = None
        self._segments: asyncio.Queue[Segment | None] = asyncio.Queue()
        self._segment: Segment | None = None
        self._newest: Segment | None = None
        self._pre_roll = bytearray()

    def can_generate_metrics(self) -> bool:
        """Check if this service can generate metrics.

        Returns:
            True.
        """
        return True

    def language_to_service_language(self, language: Language) -> str | None:
        """Convert a language to the recogniser's name for it.

        Args:
            language: The language.

        Returns:
            Its code; what is on offer depends on the server's checkpoint.
        """
        return str(language.value)

    # Life cycle ------------------------------------------------------------------------------------------------------

    async def start(self, frame: StartFrame) -> None:
        """Start the worker.

        Args:
            frame: The start frame.
        """
        await super().start(frame)
        if self._worker is None:
            self._worker = self.create_task(self._work(), name="segments")

    async def stop(self, frame: EndFrame) -> None:
        """Finish what has been said, then stop.

        Args:
            frame: The end frame.
        """
        self._end_segment()
        self._segments.put_nowait(None)
        if self._worker is not None:
            await asyncio.wait([self._worker], timeout=DRAIN_TIMEOUT_S)
        await super().stop(frame)

    async def _close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await self.cancel_task(worker)  # leaves its stream, which frees the server's slot
        await super()._close()

    # The pipeline's side: nothing here waits for the network ----------------------------------------------------------

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame | None, None]:
        """Take audio in; transcripts are pushed by the worker.

        Args:
            audio: 16-bit mono PCM at the pipeline's input rate.

        Yields:
            None.
        """
        if self._segment is not None:
            self._segment.add(audio)
        else:
            self._pre_roll += audio
            del self._pre_roll[: -self._pre_roll_bytes or len(self._pre_roll)]
        yield None

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Process frames; the VAD's begin and end segments.

        Args:
            frame: The frame to process.
            direction: The direction of frame processing.
        """
        await super().process_frame(frame, direction)
        if isinstance(frame, VADUserStartedSpeakingFrame):
            await self._cancel_eager_end_of_turn()
            self._begin_segment()
        elif isinstance(frame, VADUserStoppedSpeakingFrame):
            await self._push_eager_transcript()
            self.request_finalize()
            self._end_segment()

    @property
    def _pre_roll_bytes(self) -> int:
        return self.sample_rate * self._pre_roll_ms // 1000 * BYTES_PER_SAMPLE

    def _begin_segment(self) -> None:
        self._end_segment()
        if not self.is_usable:
            return
        settings = self._settings
        latency_ms, language = assert_given(settings.latency_ms), assert_given(settings.language)
        segment = Segment(self.sample_rate, latency_ms, language, str(settings.model), self._user_id)
        segment.span = tracing.reserve(self)
        segment.add(self._pre_roll)
        self._pre_roll.clear()
        self._segment = self._newest = segment
        self._segments.put_nowait(segment)

    def _end_segment(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.end()

    async def _push_eager_transcript(self) -> None:
        segment = self._segment
        if segment is not None and segment.text:
            await self._push_eager_end_of_turn(
                segment.text, user_id=segment.user_id, language=_language(segment.language)
            )

    # The worker's side: one segment after another ---------------------------------------------------------------------

    async def _work(self) -> None:
        while (segment := await self._segments.get()) is not None:
            try:
                final = await self._recognise(segment)
            except Exception as error:  # whatever happens to one segment, the next is heard
                await self._give_up(segment, failed=True)
                await self.push_error(f"speech was not recognised: {error}", exception=error)
            else:
                self._settings_worked = True
                await self._push_final(segment, final)

    async def _recognise(self, segment: Segment) -> Transcript:
        with segment.span.children() if segment.span is not None else contextlib.nullcontext():
            return await self._recognise_twice(segment)

    async def _recognise_twice(self, segment: Segment) -> Transcript:
        try:
            return await self._stream(segment)
        except SequenceLost as error:
            logger.warning(f"{self}: the server lost the stream, beginning it anew: {error}")
        except (ServerGone, ModelNotReady) as error:
            logger.warning(f"{self}: the server is away, trying again at the end of the segment: {error}")
            await segment.ended()
        segment.rewind()
        return await self._stream(segment)

    async def _stream(self, segment: Segment) -> Transcript:
        stream = self._voice.open_stream(
            latency_ms=segment.latency_ms,
            language=segment.language,
            answer_timeout_s=self._answer_timeout_s,
            model=segment.model,
        )
        async with stream:
            samples, last = await segment.take()
            while not last:
                await self._push_interim(segment, await stream.send(samples))
                samples, last = await segment.take()
            return await stream.end(samples)

    async def _push_interim(self, segment: Segment, transcript: Transcript) -> None:
        text = transcript.text.strip()
        if text and text != segment.text:
            segment.text = text
            await self.push_frame(
                InterimTranscriptionFrame(
                    text, segment.user_id, time_now_iso8601(), _language(segment.language), result=transcript
                )
            )

    async def _push_final(self, segment: Segment, transcript: Transcript) -> None:
        await self.emit_stt_usage_metrics()
        text = transcript.text.strip()
        if not text:
            await self._give_up(segment)
            return
        if segment is self._newest:
            self.confirm_finalize()
            self._clear_eager_end_of_turn()
        language = _language(segment.language)
        frame = TranscriptionFrame(text, segment.user_id, time_now_iso8601(), language, result=transcript)
        # On a busy machine it may wait behind the interim words that begin the turn; the interruption that a turn's
        # beginning sends would drop it with the queue.
        frame.interruptible = False
        with segment.span.made() if segment.span is not None else contextlib.nullcontext():
            await self.push_frame(frame)
        await self._handle_transcription(text, True, language)

    async def _give_up(self, segment: Segment, failed: bool = False) -> None:
        """Settles a segment that has no transcript: nothing must wait for one."""
        if segment.span is not None:
            tracing.make_unheard(self, segment.span, segment.began_s, failed)
        if segment is not self._newest:
            return
        await self._cancel_eager_end_of_turn()
        if failed:
            await self.cancel_ttfb_metrics()  # there was no answer whose latency could be told
        else:
            await self.stop_ttfb_metrics()
        await self._cancel_ttfb_timeout()

    @traced_stt
    async def _handle_transcription(self, transcript: str, is_final: bool, language: Language | None = None) -> None:
        """Marks a transcript for tracing."""


def _language(code: str | None) -> Language | None:
    """Pipecat's name of a language, if it has one."""
    try:
        return Language(code) if code else None
    except ValueError:
        return None
