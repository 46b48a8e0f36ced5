"""The host's side of one stream: its audio, its requests, and where it is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable

import numpy as np
import numpy.typing as npt

from parakeet_engine.checkpoint import Lookahead
from parakeet_engine.requests import AudioRequest
from parakeet_engine.runner import OPEN, Chunk, StepRunner
from parakeet_engine.subsampling import output_length

_NO_AUDIO = np.zeros(0, np.int16)


class Stream:
    """Cuts one caller's audio into chunks.

    Args:
        key: Its id.
        lookahead: Its latency mode.
        runner: Knows the window arithmetic.
        prompt: Index of its language's prompt.
        started: Engine clock of its START, seconds.

    Attributes:
        slot: Its slot, None while it waits for one.
        pending: Requests not answered yet, in order.
        last_request: Engine clock of its latest request, seconds.
        deadline: Engine clock until when it may wait for a slot.
        asked: Engine clock when its oldest request was last asked whether it is cancelled.
        samples: Audio that came since its START.
        conversation: Whose it is.
    """

    def __init__(self, key: Hashable, lookahead: Lookahead, runner: StepRunner, prompt: int = 0, started: float = 0.0):
        self.key = key
        self.lookahead = lookahead
        self.slot: int | None = None
        self.pending: deque[AudioRequest] = deque()
        self.started = started
        self.last_request = 0.0
        self.deadline = 0.0
        self.asked = 0.0
        self.queued_samples = 0
        self.samples = 0
        self.conversation = ""
        self._runner = runner
        self._prompt = prompt
        self._head_taken = False
        self._utterance_start = 0
        self._begin_utterance()

    def _begin_utterance(self) -> None:
        self._audio: npt.NDArray[np.int16] = _NO_AUDIO
        self._audio_start = 0  # index in the utterance of `_audio`'s first sample
        self._samples = 0  # received of the utterance
        self._first_output = 0  # next encoder frame
        self._closed = False

    @property
    def utterance_start_s(self) -> float:
        """Seconds from the sequence's start to the utterance's."""
        return self._utterance_start / 16000

    @property
    def outputs_left(self) -> int | None:
        """Encoder frames of the utterance that are still to come; None while it is open, or its end not taken in."""
        if not self._closed or not self._head_taken:
            return None
        num_frames = self._runner.features.frames_of(self._samples)
        total = output_length(num_frames) if num_frames else 0
        return max(0, total - self._first_output)

    def take_request(self) -> AudioRequest:
        """Takes in the audio of the oldest pending request, once, and returns the request."""
        request = self.pending[0]
        if not self._head_taken:
            self._head_taken = True
            request.taken = time.monotonic()
            if len(request.audio):
                self._audio = np.concatenate([self._audio, request.audio]) if len(self._audio) else request.audio
                self._samples += len(request.audio)
            self._closed = request.closes_utterance
        return request

    def finish_request(self) -> AudioRequest:
        """Removes the oldest pending request, after which the next utterance begins if it closed one."""
        request = self.pending.popleft()
        self.queued_samples -= len(request.audio)
        self._head_taken = False
        if self._closed:
            self._utterance_start += self._samples
            self._begin_utterance()
        return request

    def next_chunk(self) -> Chunk | None:
        """Returns the next chunk that can be recognised, or None if more audio must come first (or none is left)."""
        features, frames = self._runner.features, self.lookahead.frames
        num_samples = num_frames = OPEN
        outputs = frames
        first_new = self._runner.first_new_frame(self._first_output)
        new = self._runner.new_frames(self.lookahead)
        if self._samples < features.samples_needed(first_new + new - 1):
            if not self._closed:
                return None
            num_samples, num_frames = self._samples, features.frames_of(self._samples)
            outputs = min(frames, self.outputs_left or 0)
            if not outputs:
                return None
        assert self.slot is not None
        chunk = Chunk(
            slot=self.slot,
            audio=self._window(features.window_start(first_new), features.window_samples(new)),
            first_output=self._first_output,
            outputs=outputs,
            num_samples=num_samples,
            num_frames=num_frames,
            prompt=self._prompt,
        )
        self._first_output += outputs
        self._forget(features.window_start(self._runner.first_new_frame(self._first_output)))
        return chunk

    def _window(self, start: int, size: int) -> npt.NDArray[np.int16]:
        """Samples `start` to `start + size` of the utterance, zero where there are none."""
        window = np.zeros(size, np.int16)
        low, high = max(start, self._audio_start), min(start + size, self._audio_start + len(self._audio))
        if high > low:
            window[low - start : high - start] = self._audio[low - self._audio_start : high - self._audio_start]
        return window

    def _forget(self, before: int) -> None:
        """Lets go of audio that no later chunk needs."""
        drop = min(before - self._audio_start, len(self._audio))
        if drop > 0:
            self._audio = self._audio[drop:]
            self._audio_start += drop
