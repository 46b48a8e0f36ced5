"""Streaming gives what NeMo gives for the whole file, however the audio comes and whoever else is there."""

from __future__ import annotations

import queue
import threading

import numpy as np
import pytest
import torch

from parakeet_engine import (
    AsrError,
    AudioRequest,
    CheckpointError,
    Engine,
    EngineSettings,
    InvalidRequest,
    SequenceLost,
    Transcript,
    Unavailable,
)
from support import SAMPLE_RATE, speechlike

LATENCIES = (80, 160, 560, 1120)
TIMEOUT_S = 60


class Recogniser:
    """An engine, and NeMo's own offline result beside it."""

    def __init__(self, checkpoint: str, **settings):
        self.engine = Engine(EngineSettings(checkpoint=checkpoint, device="cpu", **settings))
        self.lock = threading.Lock()
        self._keys = 0

    def new_key(self) -> str:
        with self.lock:
            self._keys += 1
            return f"stream-{self._keys}"

    def send(self, key: str, audio: np.ndarray, **kwargs) -> queue.Queue:
        answer: queue.Queue = queue.Queue()
        self.engine.submit(AudioRequest(key, audio, answer.put, **kwargs))
        return answer

    def stream(self, audio: np.ndarray, sizes: list[int], latency_ms: int) -> list[Transcript]:
        """Sends the audio in pieces of these sizes, over and over, and returns every answer."""
        key, position, answers, turn = self.new_key(), 0, [], 0
        while True:
            piece = audio[position : position + sizes[turn % len(sizes)]]
            position += len(piece)
            last = position >= len(audio)
            start = turn == 0
            latency = latency_ms if start else None
            answers.append(self.send(key, piece, start=start, end=last, latency_ms=latency))
            turn += 1
            if last:
                break
        results = [answer.get(timeout=TIMEOUT_S) for answer in answers]
        assert all(isinstance(r, Transcript) for r in results), results
        return results

    def context(self, latency_ms: int) -> tuple[int, int]:
        """Encoder frames of left and right context."""
        mode = self.engine.checkpoint.lookaheads[latency_ms]
        return mode.left, mode.right

    def encoded(self, audio: np.ndarray, left: int, right: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What NeMo's encoder makes of the whole file, (1, width, frames), and how many frames that are."""
        model = self.engine.checkpoint.model
        signal = torch.from_numpy(audio.astype(np.float32) / 32768)[None]
        with torch.inference_mode():
            model.encoder.att_context_size = [left, right]
            features, length = model.preprocessor(input_signal=signal, length=torch.tensor([len(audio)]))
            return model.encoder(audio_signal=features, length=length)

    def offline(self, audio: np.ndarray, latency_ms: int) -> str:
        """NeMo's transcript of the whole file with the same attention context."""
        decode = self.engine.checkpoint.model.decoding.rnnt_decoder_predictions_tensor
        with torch.inference_mode():
            return decode(*self.encoded(audio, *self.context(latency_ms)), return_hypotheses=True)[0].text


@pytest.fixture(scope="module")
def recogniser(tiny):
    made = Recogniser(str(tiny.parakeet))
    yield made
    made.engine.close()


@pytest.mark.parametrize("latency_ms", LATENCIES)
@pytest.mark.parametrize("samples", [160, 1279, 1280, 1281, 16000, 53_333, 5 * SAMPLE_RATE])
def test_streaming_equals_offline(recogniser, latency_ms, samples):
    audio = speechlike(6, seed=samples)[:samples]
    expected = recogniser.offline(audio, latency_ms)
    for sizes in ([len(audio)], [2560], [1, 4001, 77, 900]):
        assert recogniser.stream(audio, sizes, latency_ms)[-1].text == expected


@pytest.mark.parametrize("latency_ms", LATENCIES)
@pytest.mark.parametrize("seconds", [12, 33])
def test_streaming_equals_offline_beyond_the_left_context(recogniser, monkeypatch, latency_ms, seconds):
    """Seventy encoder frames are 5.6 s. The frames too: few tokens of random weights tell what was looked back at."""
    audio, (left, right) = speechlike(seconds, seed=seconds), recogniser.context(latency_ms)
    decoder, chunks = recogniser.engine.runner.network._decoder, []
    project = decoder.project
    monkeypatch.setattr(decoder, "project", lambda frames: chunks.append(frames[0].clone()) or project(frames))
    text = recogniser.stream(audio, [1, 40_001, 7700, 9000], latency_ms)[-1].text
    monkeypatch.undo()
    expected = recogniser.encoded(audio, left, right)[0][0].T
    assert torch.allclose(torch.cat(chunks)[: len(expected)], expected, atol=1e-4)
    assert text == recogniser.offline(audio, latency_ms)
    for other in (left - right - 1, left + right + 1):  # one chunk less or more to look back at would be seen
        assert not torch.allclose(recogniser.encoded(audio, other, right)[0][0].T, expected, atol=1e-3)


def test_the_reference_depends_on_audio_and_lookahead(recogniser):
    """The equality above would say nothing if every audio gave the same text."""
    texts = {recogniser.offline(speechlike(5, seed), latency) for seed in range(4) for latency in LATENCIES}
    assert len(texts) >= 12
    assert all(len(text.split()) > 3 for text in texts)


def test_one_sample_at_a_time(recogniser):
    audio = speechlike(0.5, seed=3)
    answers = recogniser.stream(audio, [1], 160)
    assert len(answers) == len(audio)
    assert answers[-1].text == recogniser.offline(audio, 160)


def test_partials_grow_and_only_the_last_is_final(recogniser):
    answers = recogniser.stream(speechlike(4, seed=1), [2560], 160)
    assert [a.is_final for a in answers] == [False] * (len(answers) - 1) + [True]
    assert len({a.text for a in answers}) >= 4
    counts = [len("".join(w.word for w in a.words)) for a in answers]
    assert counts == sorted(counts)


def test_company_changes_nothing(recogniser):
    """Streams of all lookaheads join and leave at random while others run; each gets what it gets alone."""
    rng = np.random.RandomState(0)
    jobs = [(speechlike(rng.uniform(0.3, 4), seed), int(rng.choice(LATENCIES))) for seed in range(24)]
    expected = [recogniser.offline(audio, latency) for audio, latency in jobs]
    results: list[str] = [""] * len(jobs)

    def run(i: int) -> None:
        sizes = [int(s) for s in np.random.RandomState(i).randint(1, 6000, 7)]
        results[i] = recogniser.stream(jobs[i][0], sizes, jobs[i][1])[-1].text

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert results == expected


def test_finalize_begins_the_next_utterance_with_right_times(recogniser):
    first, second = speechlike(1.7, seed=5), speechlike(2.3, seed=6)
    key = recogniser.new_key()
    one = recogniser.send(key, first, start=True, finalize=True).get(timeout=TIMEOUT_S)
    two = recogniser.send(key, second, end=True).get(timeout=TIMEOUT_S)
    assert (one.is_final, two.is_final) == (True, True)
    assert one.text == recogniser.offline(first, 160)
    assert two.text == recogniser.offline(second, 160)
    assert all(0 <= w.start < w.end <= 1.7 + 0.2 for w in one.words)
    assert all(1.7 <= w.start < w.end <= 4.0 + 0.2 for w in two.words)
    assert all(0 < w.confidence <= 1 for w in one.words)


def test_empty_audio_gives_an_empty_final(recogniser):
    assert recogniser.stream(np.zeros(0, np.int16), [1], 160) == [Transcript("", "[]", True)]
    assert recogniser.stream(np.zeros(100, np.int16), [100], 1120) == [Transcript("", "[]", True)]


def test_start_on_a_live_stream_begins_anew(recogniser):
    key = recogniser.new_key()
    recogniser.send(key, speechlike(2, seed=7), start=True).get(timeout=TIMEOUT_S)
    audio = speechlike(1.5, seed=8)
    again = recogniser.send(key, audio, start=True, end=True).get(timeout=TIMEOUT_S)
    assert again.text == recogniser.offline(audio, 160)


@pytest.mark.parametrize(
    ("kwargs", "names"),
    [
        ({"start": True, "latency_ms": 100}, ["latency_ms 100", "80, 160, 560, 1120"]),
        ({"start": True, "language": "xx"}, ["'xx'", "en"]),
        ({"latency_ms": 160}, ["starts the sequence"]),
    ],
)
def test_bad_requests_are_refused_with_what_is_allowed(recogniser, kwargs, names):
    with pytest.raises(InvalidRequest) as error:
        recogniser.send(recogniser.new_key(), speechlike(0.1), **kwargs)
    assert all(name in str(error.value) for name in names)


def test_wrong_audio_is_refused(recogniser):
    for audio in (np.zeros(10, np.float32), np.zeros((2, 10), np.int16), np.zeros(601 * SAMPLE_RATE, np.int16)):
        with pytest.raises(InvalidRequest):
            recogniser.send(recogniser.new_key(), audio, start=True)


def test_an_unknown_stream_is_told_to_start(recogniser):
    answer = recogniser.send("never-started", speechlike(0.1)).get(timeout=TIMEOUT_S)
    assert isinstance(answer, SequenceLost)
    assert "START" in str(answer)


class TestLimits:
    @pytest.fixture(scope="class")
    def small(self, tiny):
        made = Recogniser(str(tiny.parakeet), max_streams=2, idle_s=1.0, max_backlog_s=5.0)
        yield made
        made.engine.close()

    def test_a_full_engine_refuses_after_the_timeout_and_a_freed_slot_goes_to_who_waits(self, small):
        keys = [small.new_key() for _ in range(4)]
        for key in keys[:2]:
            small.send(key, speechlike(0.2), start=True).get(timeout=TIMEOUT_S)
        refused = small.send(keys[2], speechlike(0.2), start=True, timeout_s=0.05).get(timeout=TIMEOUT_S)
        assert isinstance(refused, Unavailable)
        assert "all 2 streams" in str(refused)
        waiting = small.send(keys[3], speechlike(0.2), start=True, end=True, timeout_s=30)
        small.send(keys[0], speechlike(0.2), end=True).get(timeout=TIMEOUT_S)
        assert waiting.get(timeout=TIMEOUT_S).is_final
        small.send(keys[1], speechlike(0.2), end=True).get(timeout=TIMEOUT_S)
        assert small.engine.active_streams == 0

    def test_silent_streams_lose_their_slots(self, small):
        keys = [small.new_key() for _ in range(2)]
        for key in keys:
            small.send(key, speechlike(0.2), start=True).get(timeout=TIMEOUT_S)
        late = small.send(small.new_key(), speechlike(0.2), start=True, end=True, timeout_s=30)
        assert late.get(timeout=TIMEOUT_S).is_final
        assert isinstance(small.send(keys[0], speechlike(0.1)).get(timeout=TIMEOUT_S), SequenceLost)

    def test_a_stream_that_runs_ahead_is_told_so(self, small):
        key = small.new_key()
        answers = [small.send(key, speechlike(4, seed=i), start=i == 0) for i in range(8)]
        answers.append(small.send(key, np.zeros(0, np.int16), end=True))
        results = [a.get(timeout=TIMEOUT_S) for a in answers]
        refused = [r for r in results if isinstance(r, AsrError)]
        assert refused
        assert all(isinstance(r, Unavailable) and "behind" in str(r) for r in refused)
        assert results[-1].is_final


def test_checkpoints_that_cannot_be_used_are_named(tmp_path, tiny):
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        Engine(EngineSettings(checkpoint=str(tmp_path / "none.nemo"), device="cpu"))
    (tmp_path / "garbage.nemo").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="could not be restored"):
        Engine(EngineSettings(checkpoint=str(tmp_path / "garbage.nemo"), device="cpu"))
    with pytest.raises(CheckpointError):
        Engine(EngineSettings(checkpoint=str(tiny.codec), device="cpu"))
