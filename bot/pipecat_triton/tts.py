"""Text to speech: the sentences of a turn are pieces of one utterance of the server's synthesiser."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soxr
from pipecat.frames.frames import Frame, TTSAudioRawFrame
from pipecat.services.settings import TTSSettings
from pipecat.services.tts_service import TTSService
from pipecat.transcriptions.language import Language
from pipecat.utils.errors import ErrorCategory
from pipecat.utils.tracing.service_decorators import traced_tts
from pipecat.utils.types import NOT_GIVEN, NotGiven

from pipecat_triton import tracing
from pipecat_triton.service import TritonService
from triton_voice import DEFAULT_URL, SpeechChunk
from triton_voice.types import TTS_SAMPLE_RATE

QUIET_TIMEOUT_S = 10.0
"""Silence from server and language model after which a turn's speech is over; Pipecat's 3 s cuts a busy server off."""
PARAMETERS = ("voice", "language", "temperature", "top_k", "cfg_scale", "seed")
"""Settings that are request parameters of the server's model."""


@dataclass
class TritonTTSSettings(TTSSettings):
    """Settings of `TritonTTSService`; a change applies from the next sentence. None takes the server's default.

    Parameters:
        model: Name of the synthesiser on the server.
        voice: One of the checkpoint's voices.
        language: One of the checkpoint's languages.
        temperature: Of sampling; 0 always takes the most likely code.
        top_k: Codes considered at each draw.
        cfg_scale: Strength of classifier-free guidance; 1 is none.
        seed: The same seed gives the same speech.
    """

    temperature: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    top_k: int | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    cfg_scale: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    seed: int | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)


class _Piece:
    """One sentence on its way.

    Args:
        text: The sentence.
        model: Name of the synthesiser.
        parameters: Of the request.
        before: The sentence before it in the same turn.
    """

    def __init__(self, text: str, model: str, parameters: dict[str, Any], before: _Piece | None) -> None:
        self.text = text
        self.model = model
        self.parameters = parameters
        self.before = before
        #: The server has it: the next sentence can be sent and will be spoken after it.
        self.begun = asyncio.Event()
        #: All its audio has been handed on, or it failed.
        self.over = asyncio.Event()
        self.failed = False
        self.utterance = ""
        #: Pipecat's book-keeping of which of its words have been heard.
        self.slot: Any = None
        self._offset_s: float | None = None

    def choose_utterance(self) -> str:
        """Returns the utterance's id, that of the sentence before where voice and prosody can carry on from it."""
        before = self.before
        if before is not None and not before.failed and before.sounds_like(self):
            self.utterance = before.utterance
        else:
            self.utterance = uuid.uuid4().hex
        return self.utterance

    def sounds_like(self, other: _Piece) -> bool:
        """Tells whether another sentence is to be spoken in the same way."""
        return (self.model, self.parameters) == (other.model, other.parameters)

    def place(self, delivered_s: float) -> float:
        """Returns what to add to the server's word times, which count from the beginning of the utterance.

        Args:
            delivered_s: Audio of the turn so far, in seconds.
        """
        if self._offset_s is None:
            before, self.before = self.before, None
            goes_on = before is not None and before.utterance == self.utterance and not before.failed
            self._offset_s = before.place(delivered_s) if before is not None and goes_on else delivered_s
        return self._offset_s


class _Turn:
    """What is spoken in one audio context.

    Args:
        sample_rate: Of the audio that is handed on.
    """

    def __init__(self, sample_rate: int) -> None:
        self.last: _Piece | None = None
        self.tasks: dict[asyncio.Task, None] = {}  # in the order of the sentences
        self.delivered_s = 0.0
        self._resampler = None
        if sample_rate != TTS_SAMPLE_RATE:
            self._resampler = soxr.ResampleStream(TTS_SAMPLE_RATE, sample_rate, 1, "int16")

    def resample(self, audio: np.ndarray, last: bool = False) -> bytes:
        """Brings the next audio of the turn to the pipeline's rate."""
        if self._resampler is not None:
            audio = self._resampler.resample_chunk(audio, last=last)
        elif last:
            audio = np.zeros(0, np.int16)
        return audio.tobytes()


class TritonTTSService(TritonService, TTSService):
    """Streaming text to speech by the `magpie` model of a triton-voice server.

    The sentences of a turn are pieces of one utterance: voice and prosody carry over. While one is being spoken the
    next is already with the server, which goes on with it without a gap.

    The server tells when each word begins, so the context holds exactly the words that were heard when the user
    interrupts. An interruption cancels the requests; the server stops decoding within one step.

    The text is spoken as it is: numbers and abbreviations are written out and markdown is left out by the server.
    """

    Settings = TritonTTSSettings
    _settings: TritonTTSSettings

    def __init__(
        self,
        *,
        url: str = DEFAULT_URL,
        conversation: str | None = None,
        settings: TritonTTSSettings | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize the service.

        Args:
            url: `host:port` of the server's gRPC endpoint.
            conversation: An id for the server's log lines about this conversation's requests.
            settings: Runtime-updatable settings.
            **kwargs: Passed to `TTSService`.
        """
        default_settings = self.Settings(
            model="magpie", voice=None, language=None, temperature=None, top_k=None, cfg_scale=None, seed=None
        )
        if settings is not None:
            default_settings.apply_update(settings)
        kwargs.setdefault("stop_frame_timeout_s", QUIET_TIMEOUT_S)
        super().__init__(
            url=url,
            conversation=conversation,
            settings=default_settings,
            push_text_frames=False,
            push_start_frame=True,
            push_stop_frames=True,
            **kwargs,
        )
        self._turns: dict[str, _Turn] = {}

    def can_generate_metrics(self) -> bool:
        """Check if this service can generate metrics.

        Returns:
            True.
        """
        return True

    @property
    def supports_processing_metrics(self) -> bool:
        """Whether processing time means something: no, audio comes after `run_tts` has returned. TTFB and TTFA do."""
        return False

    def language_to_service_language(self, language: Language) -> str | None:
        """Convert a language to the synthesiser's name for it.

        Args:
            language: The language.

        Returns:
            The code without a region, e.g. `en`.
        """
        return str(language.value).split("-")[0].lower()

    async def _close(self) -> None:
        for context_id in list(self._turns):
            await self._drop(context_id)
        await super()._close()

    # Speech ----------------------------------------------------------------------------------------------------------

    @traced_tts
    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        """Send a sentence to the server; its audio is appended to the context as it comes.

        Args:
            text: The sentence.
            context_id: The turn's audio context.

        Yields:
            None.
        """
        await self.start_tts_usage_metrics(text)
        turn = self._turns.setdefault(context_id, _Turn(self.sample_rate))
        settings = {name: getattr(self._settings, name) for name in PARAMETERS}
        parameters = {name: value for name, value in settings.items() if value is not None}
        turn.last = _Piece(text, str(self._settings.model), parameters, turn.last)
        turn.last.slot = self._aggregated_frame_sequencer._slots[-1]
        self._follow(turn, self._speak(context_id, turn, turn.last))
        yield None

    async def flush_audio(self, context_id: str | None = None) -> None:
        """End the turn's audio behind its last sentence.

        Args:
            context_id: The turn's audio context.
        """
        if context_id is None:
            return
        turn = self._turns.get(context_id)
        if turn is not None:
            self._follow(turn, self._end(context_id, turn))
        else:  # not a sentence was sent: the service is not usable
            await self._take_back(context_id)
            await self.remove_audio_context(context_id)

    async def on_audio_context_interrupted(self, context_id: str) -> None:
        """Cancel what the server still does for an interrupted context.

        Args:
            context_id: The audio context.
        """
        await self._drop(context_id)
        await super().on_audio_context_interrupted(context_id)

    async def on_audio_context_completed(self, context_id: str) -> None:
        """Forget a context that has ended, by its last sentence or by a silence that was too long.

        Args:
            context_id: The audio context.
        """
        turn = self._turns.get(context_id)
        stuck = turn is not None and turn.last is not None and not turn.last.over.is_set()
        await self._drop(context_id)
        if stuck:
            await self.push_error(
                f"the server sent no audio for {self._stop_frame_timeout_s:g} s", category=ErrorCategory.CONNECTIVITY
            )
        await super().on_audio_context_completed(context_id)

    def _follow(self, turn: _Turn, coroutine: Any) -> None:
        task = self.create_task(coroutine)
        turn.tasks[task] = None
        task.add_done_callback(lambda done: turn.tasks.pop(done, None))

    async def _drop(self, context_id: str) -> None:
        """Cancels a turn's requests, all at once."""
        turn = self._turns.pop(context_id, None)
        if turn is not None:
            for task in reversed(list(turn.tasks)):
                await self.cancel_task(task)

    async def _speak(self, context_id: str, turn: _Turn, piece: _Piece) -> None:
        before = piece.before
        try:
            if before is not None:
                await before.begun.wait()
            with tracing.under(tracing.of_audio_context(self, context_id)):
                await self._stream(context_id, turn, piece, before)
            self._settings_worked = True
        except Exception as error:  # whatever happens to one sentence, the next is spoken
            piece.failed = True
            await self.push_error(f"a sentence was not spoken: {error}", exception=error)
            await self._take_back(context_id, piece.slot)
        piece.begun.set()
        if before is not None:  # a piece without audio, or a refused one, is done before its turn has come
            await before.over.wait()
        piece.over.set()

    async def _stream(self, context_id: str, turn: _Turn, piece: _Piece, before: _Piece | None) -> None:
        speech = self._voice.speak(
            piece.text, model=piece.model, utterance=piece.choose_utterance(), **piece.parameters
        )
        async with contextlib.aclosing(speech) as chunks:
            async for chunk in chunks:
                piece.begun.set()
                if before is not None:
                    await before.over.wait()
                await self._deliver(context_id, turn, piece, chunk)

    async def _deliver(self, context_id: str, turn: _Turn, piece: _Piece, chunk: SpeechChunk) -> None:
        offset_s = piece.place(turn.delivered_s)
        turn.delivered_s += chunk.duration_s
        if audio := turn.resample(chunk.audio):
            frame = TTSAudioRawFrame(audio, self.sample_rate, 1, context_id=context_id)
            await self.append_to_audio_context(context_id, frame)
        if chunk.words:
            words = [(word.word, offset_s + word.start) for word in chunk.words]
            await self.add_word_timestamps(words, context_id)

    async def _end(self, context_id: str, turn: _Turn) -> None:
        if turn.last is not None:
            await turn.last.over.wait()
        if tail := turn.resample(np.zeros(0, np.int16), last=True):
            await self.append_to_audio_context(
                context_id, TTSAudioRawFrame(tail, self.sample_rate, 1, context_id=context_id)
            )
        await self.remove_audio_context(context_id)

    async def _take_back(self, context_id: str, slot: Any = None) -> None:
        """Keeps text that nobody will hear out of the conversation: Pipecat adds what is not spoken at the end.

        Args:
            context_id: The audio context.
            slot: The sentence; None takes back all that is left of the context.
        """
        sequencer = self._aggregated_frame_sequencer
        for unspoken in sequencer._slots:
            if unspoken.context_id == context_id and unspoken.spoken and slot in (None, unspoken):
                unspoken.complete = True
        for frame in sequencer.flush():
            await self.push_frame(frame)

    async def _record_context_audio_outcome(self, context_id: str, received_audio: bool) -> None:
        """Leaves silent contexts alone.

        Each failure is pushed as an error of its own; silence without one is a text with nothing to say, such as an
        emoji. Pipecat would report both, and write the service off at the third.
        """
