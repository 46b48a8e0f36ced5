"""One conversation: microphone -> hear -> take turns -> think -> speak -> loudspeaker.

`triton-voice bot` runs one of these for each browser that connects, `triton-voice talk` one for this machine's
microphone and loudspeaker. The transport is all that differs; the models are Triton's, through
`pipecat_triton`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from loguru import logger
from pipecat.frames.frames import (
    ErrorFrame,
    LLMMessagesAppendFrame,
    LLMRunFrame,
    LLMUpdateSettingsFrame,
    STTUpdateSettingsFrame,
    TTSSpeakFrame,
    TTSUpdateSettingsFrame,
)
from pipecat.observers.base_observer import BaseObserver
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    AssistantTurnStoppedMessage,
    LLMContextAggregatorPair,
    UserTurnStoppedMessage,
)
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.processors.frameworks.rtvi import RTVIObserverParams
from pipecat.transports.base_transport import BaseTransport
from pipecat.utils.text.transforms import strip_markdown
from pipecat.workers.runner import WorkerRunner

from pipecat_triton import TritonLLMService, TritonSTTService, TritonTTSService
from triton_voice import ServerSilent
from voice_bot import persona
from voice_bot.latency import TurnLatency, TurnLatencyObserver
from voice_bot.memory import Memory
from voice_bot.recording import Recorder
from voice_bot.settings import BotSettings, TurnTaking
from voice_bot.turn_taking import Cut, user_params

HEARS_HZ = 16_000
"""Rate of the user's audio in the pipeline: the recogniser's."""
SPEAKS_HZ = 24_000
"""Rate of the bot's audio in the pipeline. Magpie's 22,050 Hz do not divide into WebRTC's packets of 10 ms."""
FAREWELL_S = 0.2
"""How long a last message may take to reach the page before its connection is closed."""
INAUDIBLE = "(inaudible)"
"""What the model is told of a barge-in whose words turned out not to be any."""


@dataclass
class Services:
    """The three models of one conversation."""

    stt: TritonSTTService
    llm: TritonLLMService
    tts: TritonTTSService

    @classmethod
    def of(cls, settings: BotSettings, turn: TurnTaking, memory: Memory) -> Services:
        """Makes them for a server; nothing connects before the pipeline starts."""
        several = len(settings.languages) > 1  # a recogniser of one language need not be told which
        return cls(
            stt=TritonSTTService(
                url=settings.server,
                conversation=memory.label,
                eager_transcripts=turn.eager,
                settings=TritonSTTService.Settings(language=memory.language if several else None),
            ),
            llm=TritonLLMService(
                url=settings.server,
                conversation=memory.label,
                answer_timeout_s=settings.answer_timeout_s,
                settings=TritonLLMService.Settings(
                    system_instruction=persona.system_prompt(memory.language),
                    max_tokens=settings.reply_tokens,
                    temperature=settings.temperature,
                ),
            ),
            tts=TritonTTSService(
                url=settings.server,
                conversation=memory.label,
                text_transforms=[("*", strip_markdown)],
                settings=TritonTTSService.Settings(voice=memory.voice, language=memory.language),
            ),
        )


@dataclass
class Conversation:
    """One person's conversation. Make it with `create`, then `run` it to its end.

    Attributes:
        settings: How the bot runs.
        turn: When turns begin and end.
        memory: What was said, by whom, with which voice; outlives the conversation.
        services: The models.
        worker: Pipecat's pipeline.
        context: What the language model is given.
    """

    settings: BotSettings
    turn: TurnTaking
    memory: Memory
    services: Services
    worker: PipelineWorker
    context: LLMContext
    _runner: WorkerRunner | None = None
    _greeted: bool = False
    _cut_off: bool = False
    _stopped_by_hand: bool = False
    _ending: bool = False

    @classmethod
    async def create(
        cls,
        transport: BaseTransport,
        settings: BotSettings,
        turn: TurnTaking,
        memory: Memory,
        *,
        services: Services | None = None,
        observers: list[BaseObserver] | None = None,
        on_latency: Callable[[TurnLatency], Awaitable[None]] | None = None,
        on_said: Callable[[str, str], None] | None = None,
        on_interrupted: Callable[[], None] | None = None,
    ) -> Conversation:
        """Builds the pipeline.

        Args:
            transport: Where the user's audio comes from and the bot's goes.
            settings: How the bot runs.
            turn: When turns begin and end.
            memory: The conversation so far; an empty one for a new conversation.
            services: The models; None makes them.
            observers: Further observers of the pipeline's frames.
            on_latency: Told how long the user waited for each answer.
            on_said: Told each message when it is complete: its role, `user` or `assistant`, and what was heard of it.
            on_interrupted: Told when an answer was interrupted.
        """
        services = services or Services.of(settings, turn, memory)
        context = memory.context
        context.set_tools(persona.tools())
        cut = Cut()
        listener, speaker = LLMContextAggregatorPair(context, user_params=await user_params(turn, HEARS_HZ, cut))
        speaker.add_event_handler("on_after_process_frame", cut.on_after_process_frame)
        steps: list[FrameProcessor] = [
            transport.input(),
            services.stt,
            listener,
            services.llm,
            services.tts,
            transport.output(),
            speaker,
        ]
        if settings.record is not None:
            steps.insert(-1, Recorder(settings.record, memory.label))

        async def report(latency: TurnLatency) -> None:
            await worker.rtvi.send_server_message(latency.message())
            if on_latency is not None:
                await on_latency(latency)

        worker = PipelineWorker(
            Pipeline(steps),
            params=PipelineParams(
                audio_in_sample_rate=HEARS_HZ,
                audio_out_sample_rate=SPEAKS_HZ,
                enable_metrics=True,
                enable_usage_metrics=True,
            ),
            observers=[TurnLatencyObserver(report), *(observers or [])],
            idle_timeout_secs=settings.idle_minutes * 60,
            cancel_on_idle_timeout=False,
            enable_tracing=settings.trace is not None,
            conversation_id=memory.label,
            rtvi_observer_params=RTVIObserverParams(bot_llm_enabled=True, bot_tts_enabled=False, metrics_enabled=False),
        )
        conversation = cls(settings, turn, memory, services, worker, context)
        conversation._listen_to_events(
            listener, speaker, on_said or (lambda role, text: None), on_interrupted or (lambda: None)
        )
        return conversation

    @property
    def apology(self) -> str:
        """What is said when no answer comes in time; empty for nothing."""
        own = self.settings.apology
        return persona.apology(self.memory.language) if own is None else own

    def _listen_to_events(
        self, listener: Any, speaker: Any, on_said: Callable[[str, str], None], on_interrupted: Callable[[], None]
    ) -> None:
        @listener.event_handler("on_user_turn_message_added")
        async def on_message(aggregator: Any, message: Any) -> None:
            on_said("user", message.content)
            self.memory.trim(self.settings.history)

        @listener.event_handler("on_user_turn_stopped")
        async def on_user_turn(aggregator: Any, strategy: Any, message: UserTurnStoppedMessage) -> None:
            cut_off, self._cut_off, self._stopped_by_hand = self._cut_off, False, False
            if not message.content:
                await self._go_on_after_noise(cut_off)

        @speaker.event_handler("on_assistant_turn_stopped")
        async def on_bot_turn(aggregator: Any, message: AssistantTurnStoppedMessage) -> None:
            self._cut_off = message.interrupted and not self._stopped_by_hand
            if message.interrupted:
                on_interrupted()
            if message.content:
                on_said("assistant", message.content)

        @self.worker.event_handler("on_pipeline_error")
        async def on_error(worker: Any, frame: ErrorFrame) -> None:
            voiceless = frame.processor is self.services.tts
            if isinstance(frame.exception, ServerSilent) and not voiceless and self.apology:
                await self.worker.queue_frame(TTSSpeakFrame(self.apology))

        @self.worker.event_handler("on_idle_timeout")
        async def on_idle(worker: Any) -> None:
            await self.end(f"Nobody said anything for {self.settings.idle_minutes:g} minutes.")

        @self.worker.rtvi.event_handler("on_client_message")
        async def on_page(rtvi: Any, message: Any) -> None:
            await self._obey(rtvi, message)

    async def _go_on_after_noise(self, cut_off: bool) -> None:
        """Answers after a turn without words, if it stopped an answer: the bot must not fall silent for a cough."""
        last = self.context.messages[-1] if self.context.messages else None
        if not isinstance(last, dict):
            return
        if last.get("role") != "assistant":
            await self.worker.queue_frame(LLMRunFrame())
        elif cut_off:
            said: Any = {"role": "user", "content": INAUDIBLE}
            await self.worker.queue_frame(LLMMessagesAppendFrame([said], run_llm=True))

    async def _obey(self, rtvi: Any, message: Any) -> None:
        """Does what the page asks for."""
        data = message.data if isinstance(message.data, dict) else {}
        if message.type == "interrupt":
            self._stopped_by_hand = True
            await rtvi.interrupt_bot()
        elif message.type == "set-voice":
            if refusal := await self.set_voice(data.get("voice")):
                await rtvi.send_error_response(message, refusal)
            else:
                await rtvi.send_server_response(message, {"voice": self.memory.voice})
        elif message.type == "set-language":
            if refusal := await self.set_language(data.get("language")):
                await rtvi.send_error_response(message, refusal)
            else:
                await rtvi.send_server_response(message, {"language": self.memory.language})
        else:
            await rtvi.send_error_response(message, f"The bot does not know the message {message.type!r}.")

    async def set_voice(self, voice: object) -> str | None:
        """Speaks with another voice from the next sentence on; returns why not, or None."""
        if voice not in self.settings.voices:
            return f"There is no voice {voice!r}; there are {', '.join(self.settings.voices)}."
        self.memory.voice = str(voice)
        await self.worker.queue_frame(TTSUpdateSettingsFrame(delta=TritonTTSService.Settings(voice=str(voice))))
        return None

    async def set_language(self, language: object) -> str | None:
        """Hears, answers and speaks another language from now on; returns why not, or None."""
        if language not in self.settings.languages:
            return f"There is no language {language!r}; there are {', '.join(self.settings.languages)}."
        self.memory.language = chosen = str(language)
        if len(self.settings.languages) > 1:
            await self.worker.queue_frame(STTUpdateSettingsFrame(delta=TritonSTTService.Settings(language=chosen)))
        prompt = persona.system_prompt(chosen)
        await self.worker.queue_frame(
            LLMUpdateSettingsFrame(delta=TritonLLMService.Settings(system_instruction=prompt))
        )
        await self.worker.queue_frame(TTSUpdateSettingsFrame(delta=TritonTTSService.Settings(language=chosen)))
        return None

    async def greet(self) -> None:
        """Says hello, once, unless a conversation is being taken up again."""
        greeting = persona.GREETING if self.settings.greeting is None else self.settings.greeting
        if not self._greeted and greeting and not self.context.messages:
            await self.worker.queue_frame(TTSSpeakFrame(greeting))
        self._greeted = True

    async def run(self) -> None:
        """Runs until `end`, or until the pipeline ends by itself. Everything is freed when it returns."""
        if self._ending:
            return
        self._runner = WorkerRunner(handle_sigint=False)
        with logger.contextualize(conversation=self.memory.label):  # all that the pipeline's tasks log
            await self._runner.add_workers(self.worker)
            await self._runner.run()

    async def end(self, reason: str | None = None) -> None:
        """Has `run` return; does not wait for it.

        Args:
            reason: A sentence for the page; None when there is nobody to read it.
        """
        if self._ending:
            return
        self._ending = True
        if self._runner is None:
            return
        if reason:
            logger.bind(conversation=self.memory.label).info(f"the conversation ends: {reason}")
            await self.worker.rtvi.send_server_message({"type": "session-ended", "reason": reason})
            await asyncio.sleep(FAREWELL_S)
        await self._runner.cancel()
