"""One spoken turn through a Pipecat pipeline: a WAV file in, the reply as a WAV file out.

    triton-voice serve &
    python -m pipecat_triton.example question.wav reply.wav

A real bot puts a transport's input and output in the place of `listen` and `Recorder`; the
project's `bot/bot.py` does.
"""

from __future__ import annotations

import argparse
import asyncio
import wave
from pathlib import Path

import numpy as np
from pipecat.audio.turn.smart_turn.local_smart_turn_v3 import LocalSmartTurnAnalyzerV3
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InputAudioRawFrame,
    LLMFullResponseEndFrame,
    TTSAudioRawFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner

from pipecat_triton import (
    EagerTurnAnalyzerUserTurnStopStrategy,
    TritonLLMService,
    TritonSTTService,
    TritonTTSService,
)
from triton_voice import DEFAULT_URL, in_chunks, read_audio

IN_RATE, OUT_RATE = 16000, 24000
SILENCE_S = 5.0
"""After the question: as long as Smart Turn may wait for more of it."""
TURN_TIMEOUT_S = 120.0


class Recorder(FrameProcessor):
    """Collects the reply's audio.

    Attributes:
        audio: 16-bit mono PCM.
        done: Set when the reply is complete.
    """

    def __init__(self) -> None:
        super().__init__()
        self.audio = bytearray()
        self.done = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Keep audio and pass everything on.

        Args:
            frame: The frame.
            direction: Where it goes.
        """
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            self.audio += frame.audio
        elif isinstance(frame, LLMFullResponseEndFrame):
            self.done.set()
        await self.push_frame(frame, direction)


async def listen(worker: PipelineWorker, question: Path) -> None:
    """Feeds a file, and silence behind it, as a microphone would."""
    audio = np.concatenate([read_audio(question), np.zeros(int(SILENCE_S * IN_RATE), np.int16)])
    async for piece in in_chunks(audio, 0.02, realtime=True):
        await worker.queue_frame(InputAudioRawFrame(piece.tobytes(), IN_RATE, 1))


async def converse(url: str, question: Path, reply: Path) -> LLMContext:
    """Runs one turn.

    Args:
        url: `host:port` of the server.
        question: Any audio file.
        reply: WAV file to write.

    Returns:
        The conversation.
    """
    stt = TritonSTTService(url=url, eager_transcripts=True)
    llm = TritonLLMService(
        url=url, settings=TritonLLMService.Settings(system_instruction="Answer in one sentence.", max_tokens=60)
    )
    tts = TritonTTSService(url=url, settings=TritonTTSService.Settings(voice="aria"))
    context = LLMContext()
    turn_end = EagerTurnAnalyzerUserTurnStopStrategy(turn_analyzer=LocalSmartTurnAnalyzerV3())
    user, assistant = LLMContextAggregatorPair(
        context,
        user_params=LLMUserAggregatorParams(
            vad_analyzer=SileroVADAnalyzer(), user_turn_strategies=UserTurnStrategies(stop=[turn_end])
        ),
    )
    recorder = Recorder()
    worker = PipelineWorker(
        Pipeline([stt, user, llm, tts, recorder, assistant]),
        params=PipelineParams(audio_in_sample_rate=IN_RATE, audio_out_sample_rate=OUT_RATE, enable_metrics=True),
    )
    runner = WorkerRunner()
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    listening = asyncio.create_task(listen(worker, question))
    try:
        await asyncio.wait_for(recorder.done.wait(), TURN_TIMEOUT_S)
    except TimeoutError:
        raise SystemExit(f"no reply in {TURN_TIMEOUT_S:.0f} s: is there speech in {question}?") from None
    finally:
        listening.cancel()
        await worker.queue_frame(EndFrame())
        await running
    with wave.open(str(reply), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(OUT_RATE)
        file.writeframes(bytes(recorder.audio))
    return context


def main() -> None:
    """Reads the command line and runs one turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("question", type=Path, help="any audio file")
    parser.add_argument("reply", type=Path, help="WAV file to write")
    parser.add_argument("--url", default=DEFAULT_URL, help="gRPC endpoint of the server (default %(default)s)")
    options = parser.parse_args()
    context = asyncio.run(converse(options.url, options.question, options.reply))
    for message in context.messages:
        print(message)


if __name__ == "__main__":
    main()
