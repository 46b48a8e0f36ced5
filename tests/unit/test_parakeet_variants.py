"""What the recogniser's engine does beyond plain equality: languages, precision, long streams, fairness, CUDA."""

from __future__ import annotations

import json
import queue
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from parakeet_engine import (
    AsrError,
    AudioRequest,
    Checkpoint,
    Engine,
    EngineSettings,
    Observer,
    SequenceLost,
    Unavailable,
)
from parakeet_engine.runner import OPEN, Chunk, ChunkTokens, StepRunner, _as_arrays, _GraphedStep
from parakeet_engine.stream import Stream
from parakeet_engine.words import WordAssembler
from support import SAMPLE_RATE, speechlike
from triton_voice.checkpoints import parakeet as maker

TIMEOUT_S = 60


def ask(engine: Engine, key: str, audio: np.ndarray, **kwargs):
    answer: queue.Queue = queue.Queue()
    engine.submit(AudioRequest(key, audio, answer.put, **kwargs))
    return answer


class TestLanguages:
    """A prompt-conditioned checkpoint (the class of Nemotron 3.5) is told each stream's language."""

    @pytest.fixture(scope="class")
    def engine(self, tmp_path_factory):
        path = maker.make(tmp_path_factory.mktemp("prompted"), languages=("en", "de", "fr"))
        engine = Engine(EngineSettings(checkpoint=str(path), device="cpu"))
        yield engine
        engine.close()

    def offline(self, engine: Engine, audio: np.ndarray, language: str) -> str:
        model = engine.checkpoint.model
        model.encoder.att_context_size = [70, 1]
        signal = torch.from_numpy(audio.astype(np.float32) / 32768)[None]
        with torch.inference_mode():
            encoded, length = model.forward(
                input_signal=signal,
                input_signal_length=torch.tensor([len(audio)]),
                prompt_indices=torch.tensor([engine.checkpoint.prompts[language]]),
            )
            return model.decoding.rnnt_decoder_predictions_tensor(encoded, length, return_hypotheses=True)[0].text

    def test_each_stream_gets_its_language(self, engine):
        audio = speechlike(3, seed=11)
        expected = {language: self.offline(engine, audio, language) for language in ("en", "de", "fr")}
        assert len(set(expected.values())) == 3
        answers = {name: ask(engine, name, audio, start=True, end=True, language=name) for name in expected}
        assert {name: answer.get(timeout=TIMEOUT_S).text for name, answer in answers.items()} == expected
        assert ask(engine, "default", audio, start=True, end=True).get(timeout=TIMEOUT_S).text == expected["en"]


def test_bfloat16_hears_much_the_same(tiny):
    """Encoder outputs agree to bfloat16's precision, and decoding runs (random weights' tokens would not say much)."""
    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        checkpoint = Checkpoint.load(str(tiny.parakeet), torch.device("cpu"))
        runner = StepRunner(checkpoint, 1, dtype, torch.device("cpu"))
        mode = checkpoint.lookaheads[560]
        project, encoded = runner.network._decoder.project, []
        runner.network._decoder.project = lambda x, project=project, to=encoded: to.append(x.float()) or project(x)
        stream = Stream("a", mode, runner)
        stream.slot = 0
        stream.pending.append(AudioRequest("a", speechlike(4, seed=12), lambda result: None))
        stream.take_request()
        while (chunk := stream.next_chunk()) is not None:
            runner.step(mode, [chunk])
        outputs.append(torch.cat(encoded, dim=1))
    assert outputs[0].shape == outputs[1].shape == (1, 49, 64)
    assert torch.nn.functional.cosine_similarity(*outputs, dim=-1).min() > 0.99


class _Operations(TorchDispatchMode):
    """Counts tensor operations with the shapes they work on."""

    def __init__(self):
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = tuple(tuple(a.shape) for a in args if isinstance(a, torch.Tensor))
        self.counts[str(func), shapes] += 1
        return func(*args, **(kwargs or {}))


def test_a_ten_minute_stream_costs_as_much_at_its_end_as_at_its_beginning(tiny):
    """Same operations on the same shapes in minute 1 and minute 10, and no audio kept that no chunk needs."""
    checkpoint = Checkpoint.load(str(tiny.parakeet), torch.device("cpu"))
    runner = StepRunner(checkpoint, 1, torch.float32, torch.device("cpu"))
    mode = checkpoint.lookaheads[160]
    stream = Stream("long", mode, runner)
    stream.slot = 0
    piece = speechlike(10, seed=13)
    by_tokens: dict[str, dict[int, Counter]] = {"early": {}, "late": {}}
    steps = kept = 0
    for _ in range(60):
        stream.pending.append(AudioRequest("long", piece, lambda result: None))
        stream.take_request()
        while (chunk := stream.next_chunk()) is not None:
            steps += 1
            phase = "early" if 100 < steps <= 400 else "late" if steps > 3400 else None
            if phase is None:
                runner.step(mode, [chunk])
                continue
            with _Operations() as operations:
                [emitted] = runner.step(mode, [chunk])
            by_tokens[phase].setdefault(len(emitted.tokens), operations.counts)
        stream.finish_request()
        kept = max(kept, len(stream._audio))
    assert steps == pytest.approx(600 / 0.16, abs=2)
    common = by_tokens["early"].keys() & by_tokens["late"].keys()
    assert common
    for tokens in common:
        assert by_tokens["early"][tokens] == by_tokens["late"][tokens]
    assert kept <= runner.features.window_samples(runner.new_frames(mode)) + SAMPLE_RATE // 10


def test_a_minute_at_once_does_not_starve_the_others(tiny):
    """While a request of two minutes is worked off, a caller with short chunks is answered after a step or two each."""
    steps = 0
    taken, waits = {}, []  # counted on the engine's thread: how quickly this one gets its turn does not matter
    engine = Engine(EngineSettings(checkpoint=str(tiny.parakeet), device="cpu"))
    step, admit, answer = engine.runner.step, engine._admit, engine._answer

    def counting(lookahead, chunks):
        nonlocal steps
        steps += 1
        return step(lookahead, chunks)

    def admitting(request):
        taken[id(request)] = steps
        admit(request)

    def answering(stream, request):
        if stream.key == "live":
            waits.append(steps - taken[id(request)])
        answer(stream, request)

    engine.runner.step, engine._admit, engine._answer = counting, admitting, answering
    try:
        bulk = ask(engine, "bulk", np.tile(speechlike(10, seed=14), 12), start=True, end=True)
        for i in range(20):
            ask(engine, "live", speechlike(0.16, seed=i), start=i == 0).get(timeout=TIMEOUT_S)
        assert len(waits) == 20 and max(waits) <= 2
        assert bulk.get(timeout=TIMEOUT_S).is_final
        assert steps >= 750
    finally:
        engine.close()


@pytest.mark.parametrize("latency_ms", [80, 160, 560, 1120])
def test_an_end_takes_one_step_for_a_chunk_and_one_for_the_rest_with_nobody_between(tiny, latency_ms):
    """Also beside long recordings of every mode, which have a chunk ready at any time."""
    steps: list[list[tuple[int, int, bool]]] = []  # of each step: slot, first output, whether the utterance is over
    engine = Engine(EngineSettings(checkpoint=str(tiny.parakeet), device="cpu", max_batch=4, max_streams=12))
    step = engine.runner.step

    def noting(lookahead, chunks):
        steps.append([(chunk.slot, chunk.first_output, chunk.num_frames < OPEN) for chunk in chunks])
        return step(lookahead, chunks)

    engine.runner.step = noting
    try:
        frames = latency_ms // 80
        # The second request brings chunks that are full and half a one: its last step is for that.
        audio = speechlike(8 * latency_ms / 1000, seed=3)
        cut, end = len(audio) // 2, 16 * latency_ms * 6 - 16 * latency_ms // 2
        bulk = [
            ask(engine, f"bulk-{i}", np.tile(speechlike(10, seed=i), 6), start=True, end=True, latency_ms=mode)
            for i, mode in enumerate((80, 160, 560, 1120, 80, 160, 560, 1120))
        ]
        assert not ask(engine, "live", audio[:cut], start=True, latency_ms=latency_ms).get(timeout=TIMEOUT_S).is_final
        slot = engine._streams["live"].slot
        done = len(steps)
        assert ask(engine, "live", audio[cut:end], end=True).get(timeout=TIMEOUT_S).is_final
        assert any(answer.empty() for answer in bulk)
    finally:
        engine.close()
    own = [
        (at, first, over)
        for at, batch in enumerate(steps[done - 1 :], done - 1)
        for its, first, over in batch
        if its == slot
    ]
    (before, first, _), (last, begin, over) = own[-2:]
    assert over and begin == first + frames  # a full chunk, then the rest of the utterance
    assert last == before + 1


def test_an_abandoned_stream_gives_its_slot_back_at_once(tiny):
    engine = Engine(EngineSettings(checkpoint=str(tiny.parakeet), device="cpu", max_streams=1))
    try:
        ask(engine, "gone", speechlike(0.3), start=True).get(timeout=TIMEOUT_S)
        engine.abandon("gone", time.monotonic())
        engine.abandon("never was", time.monotonic())
        done = ask(engine, "next", speechlike(0.3), start=True, end=True, timeout_s=5).get(timeout=TIMEOUT_S)
        assert done.is_final
    finally:
        engine.close()


def test_a_cancelled_request_is_dropped_long_before_its_end(tiny):
    """The caller of ten minutes of audio goes away: the work stops within the request, and the slot is free."""
    steps: list[int] = []

    class Counting(Observer):
        def stepped(self, streams: int, seconds: float) -> None:
            steps.append(streams)

    engine = Engine(EngineSettings(checkpoint=str(tiny.parakeet), device="cpu", max_streams=1), Counting())
    try:
        audio = np.tile(speechlike(10, seed=15), 60)
        bulk = ask(engine, "bulk", audio, start=True, end=True, is_cancelled=lambda: True)
        assert isinstance(bulk.get(timeout=TIMEOUT_S), SequenceLost)
        assert 0 < len(steps) < 3750  # of 160 ms each
        done = ask(engine, "next", speechlike(0.3), start=True, end=True, timeout_s=5).get(timeout=TIMEOUT_S)
        assert done.is_final
    finally:
        engine.close()


def test_a_fault_inside_is_answered_and_the_engine_goes_on(tiny, monkeypatch):
    engine = Engine(EngineSettings(checkpoint=str(tiny.parakeet), device="cpu"))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(engine.runner, "step", lambda *args: 1 / 0)
            assert isinstance(ask(engine, "a", speechlike(1), start=True).get(timeout=TIMEOUT_S), AsrError)
        with monkeypatch.context() as patch:
            patch.setattr(Stream, "next_chunk", lambda self: 1 / 0)
            assert isinstance(ask(engine, "b", speechlike(1), start=True).get(timeout=TIMEOUT_S), AsrError)
        assert ask(engine, "c", speechlike(1), start=True, end=True).get(timeout=TIMEOUT_S).is_final
        assert engine.active_streams == 0
    finally:
        engine.close()
    with pytest.raises(Unavailable):
        ask(engine, "d", speechlike(1), start=True)


@pytest.mark.parametrize("seed", range(8))
def test_a_transcript_is_joined_as_the_tokenizer_joins_it(tiny, seed):
    """Also beside unknown symbols and bare word marks, however the tokens are spread over steps."""
    tokenizer = Checkpoint.load(str(tiny.parakeet), torch.device("cpu")).model.tokenizer
    pieces = tokenizer.ids_to_tokens(list(range(tokenizer.vocab_size)))
    rng = np.random.RandomState(seed)
    special = [0, pieces.index("▁")] if "▁" in pieces else [0]
    tokens = [int(rng.choice(special)) if rng.rand() < 0.3 else rng.randint(tokenizer.vocab_size) for _ in range(30)]
    assembler = WordAssembler(pieces, tokenizer.ids_to_text)
    for begin in range(0, len(tokens), 3):
        part = tokens[begin : begin + 3]
        assembler.add(ChunkTokens(part, [begin] * len(part), [1.0] * len(part)))
        assert assembler.text() == tokenizer.ids_to_text(tokens[: begin + 3])
    words = json.loads(assembler.words_json())
    assert "".join(word["word"] for word in words).replace(" ", "") == assembler.text().replace(" ", "")


def test_rows_that_fill_a_batch_up_keep_nobody_waiting(monkeypatch):
    """They decode what earlier callers said, and may need more iterations than those that are asked for."""
    replayed, host = [], torch.zeros(4, 2 + 3 * 2, dtype=torch.int32)

    class Graph:
        def __init__(self, name: str, unfinished: list[int]):
            self.name, self.unfinished = name, unfinished

        def replay(self) -> None:
            replayed.append(self.name)
            assert len(replayed) < 9
            host[:, 1] = torch.tensor(self.unfinished)

    chunks = [Chunk(slot, np.zeros(8, np.int16), 0, 2) for slot in range(4)]
    step = _GraphedStep.__new__(_GraphedStep)  # there are no graphs without a GPU
    step._padding, step._host = _as_arrays(chunks), host
    step._staged = tuple(torch.from_numpy(part) for part in _as_arrays(chunks))
    step._begin, step._proceed = Graph("begin", [0, 1, 1, 1]), Graph("proceed", [0, 0, 0, 1])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=lambda: None))
    assert len(step.run(chunks[:1])) == 1
    assert replayed == ["begin"]
    assert len(step.run(chunks[:3])) == 3
    assert replayed == ["begin", "begin", "proceed"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_give_what_eager_steps_give(tiny):
    audios = [speechlike(2 + seed / 3, seed) for seed in range(9)]
    texts = []
    for graphs in (False, True):
        settings = EngineSettings(checkpoint=str(tiny.parakeet), device="cuda", cuda_graphs=graphs, max_batch=4)
        engine = Engine(settings)
        assert engine.runner.captured is graphs
        answers = [
            ask(engine, str(i), a, start=True, end=True, latency_ms=(80, 160, 560, 1120)[i % 4])
            for i, a in enumerate(audios)
        ]
        texts.append([answer.get(timeout=TIMEOUT_S).text for answer in answers])
        engine.close()
    assert texts[0] == texts[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_kernels_are_used_and_give_what_pytorch_gives(tiny, dtype):
    """Their own check, which a device that they do not suit fails, passes; noise in the rings shows any wrong place."""
    from parakeet_engine.conformer import ConformerLayers, ring_sizes
    from parakeet_engine.fused import FusedConformerLayers
    from parakeet_engine.fused_decoder import FusedGreedyDecoder
    from parakeet_engine.slots import Rings

    device = torch.device("cuda")
    checkpoint = Checkpoint.load(str(tiny.parakeet), device)
    runner = StepRunner(checkpoint, 1, dtype, device)
    assert isinstance(runner.network._layers, FusedConformerLayers)
    assert isinstance(runner.network._decoder, FusedGreedyDecoder)
    encoder, modes = checkpoint.model.encoder, list(checkpoint.lookaheads.values())
    plain, generator = ConformerLayers(encoder, modes), torch.Generator(device).manual_seed(0)
    for mode in modes:
        for batch in (1, 3, 9):
            ours = Rings.zeros(len(encoder.layers), 16, ring_sizes(modes, plain.kernel), encoder.d_model, dtype, device)
            for tensor in vars(ours).values():
                tensor.normal_(generator=generator)
            theirs = Rings(*(tensor.clone() for tensor in vars(ours).values()))
            slot = torch.randperm(16, generator=generator, device=device)[:batch]
            first = mode.frames * torch.randint(0, 200, (batch,), generator=generator, device=device)
            outputs = torch.randint(1, mode.frames + 1, (batch,), generator=generator, device=device)
            x = torch.randn(batch, mode.frames, encoder.d_model, generator=generator, device=device).to(dtype)
            places = plain.places(mode, slot, first, outputs)
            with torch.inference_mode():
                got, wanted = runner.network._layers(mode, x, places, ours), plain(mode, x, places, theirs)
            valid = torch.arange(mode.frames, device=device) < outputs[:, None]
            tolerance = 1e-5 if dtype == torch.float32 else 2e-2
            assert (got[valid].float() - wanted[valid].float()).norm() < tolerance * wanted[valid].float().norm()
            for tensor, other in zip(vars(ours).values(), vars(theirs).values(), strict=True):
                assert (tensor.float() - other.float()).norm() < tolerance * other.float().norm()
