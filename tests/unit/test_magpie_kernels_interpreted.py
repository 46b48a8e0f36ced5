"""The speech engine's CUDA kernels without a GPU: interpreted, and compared with PyTorch, tiny and at full size."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support_kernels import a_few, backwards, close, every, vast, watched
from support_magpie import fresh_model, recorded

from magpie_engine import fused, kernels
from magpie_engine.checkpoint import read_catalog
from magpie_engine.engine import SpeechEngine
from magpie_engine.request import SpeechRequest
from magpie_engine.runner import ModelRunner, Sampling
from magpie_engine.sampler import CodebookSampler, SamplingState, _draw, _guide
from magpie_engine.settings import EngineSettings
from triton_voice.checkpoints import magpie as maker

PRECISIONS = [torch.float32, torch.bfloat16]
FULL = maker.SHAPES["full"]


def settings_of(tiny: Any, **changes: Any) -> EngineSettings:
    paths = {"checkpoint": str(tiny.magpie), "codec": str(tiny.codec)}
    return EngineSettings(**paths, device="cpu", normalizer="light", **changes)


def fused_runner(runner: ModelRunner) -> ModelRunner:
    """Gives a runner the kernels; what their comparison at load refuses raises here."""
    model, inference = runner._model, runner._model.inference_parameters
    runner._decoder = fused.FusedDecoder(
        model.decoder, runner._cache, inference.estimate_alignment_from_layers, inference.apply_prior_to_layers
    )
    runner._sampler = fused.FusedSampler(model)
    runner._alignment = fused.FusedAlignment(
        runner._slots, runner._cache.text_mask.shape[1], inference, model.chunked_inference_config, model.device
    )
    runner._embed = fused.FusedEmbedding(model, runner._cache)
    runner._conclude = fused.FusedConclusion(runner._sampler, runner._newest, runner._steps, runner._cache.lengths)
    return runner


def spoken(engine: SpeechEngine, steps: int, **parameters: Any) -> list[torch.Tensor]:
    """The codes of the first steps of three utterances, the last of which joins after the first step."""
    lines = ["hello world this is a test", "thank you very much", "yes"]
    codes = []
    for step in range(steps):
        for seed in {0: (0, 1), 1: (2,)}.get(step, ()):
            request = SpeechRequest.from_parameters(lines[seed], {"seed": seed} | parameters, engine.catalog)
            codes.append(recorded(engine.submit(request, lambda event: None)))
        engine.step()
    return [torch.cat(own, dim=1) for own in codes]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_speech_with_the_kernels_has_the_codes_of_pytorchs_step(tiny, temperature):
    """Few rows, then many, as a third speaker joins; programs run last first, and none touches what another stores."""
    settings = settings_of(tiny, max_streams=3)
    model = fresh_model(settings)
    model.inference_parameters.max_decoder_steps = 8
    wanted = spoken(SpeechEngine(model, settings), 2, temperature=temperature)
    engine = SpeechEngine(model, settings)
    fused_runner(engine._runner)
    with watched(backwards) as watch:
        got = spoken(engine, 2, temperature=temperature)
    assert not engine.stats().failed
    for launch in watch.launches:
        launch.check_programs_are_apart()
    assert {launch.name for launch in watch.launches} == {
        "few_rows", "embed", "attend", "attend_part", "merge_parts", "read_text", "draw", "follow", "conclude",
    }  # fmt: skip
    assert [own.shape[1] for own in wanted] == [2, 2, 1]
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_read_ahead_is_there(tiny, monkeypatch):
    """Kernels that start early read before they wait only what no kernel before them may still be writing."""
    settings = settings_of(tiny, max_streams=2)
    model = fresh_model(settings)
    model.inference_parameters.max_decoder_steps = 8
    wanted = spoken(SpeechEngine(model, settings), 1, temperature=0.0)
    engine = SpeechEngine(model, settings)
    fused_runner(engine._runner)
    monkeypatch.setattr(fused, "_starts_early", lambda device: True)
    with watched(early=[kernels]) as watch:
        got = spoken(engine, 1, temperature=0.0)
    assert not engine.stats().failed
    assert {launch.name for launch in watch.launches if launch.early} == {
        "few_rows",
        "attend_part",
        "merge_parts",
        "read_text",
        "draw",
    }
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_the_comparison_at_load_accepts_the_sampler_and_refuses_a_wrong_one(tiny, monkeypatch):
    monkeypatch.setattr(fused, "FEW_ROWS", 2)  # a smaller comparison
    settings = settings_of(tiny, max_streams=2)
    model = fresh_model(settings)
    runner = ModelRunner(model, read_catalog(model, settings), settings)
    plain, sampler = runner._sampler, fused_runner(runner)._sampler
    with watched(), torch.inference_mode():
        sampler.check(plain)
        sampler._next_inputs = [-table for table in sampler._next_inputs]
        with pytest.raises(RuntimeError, match="draw other codes"):
            sampler.check(plain)


def test_the_comparison_at_load_accepts_the_kernels_in_bfloat16(tiny):
    settings = settings_of(tiny, max_streams=2, precision="bfloat16")
    model = fresh_model(settings)
    runner = ModelRunner(model, read_catalog(model, settings), settings)
    plain = runner._alignment
    fused_runner(runner)
    with watched(), torch.inference_mode():
        runner._decoder.check()
        runner._alignment.check(plain)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize(
    ("outputs", "inputs", "options"),
    [
        (2304, 768, ("norm",)),  # queries, keys, values
        (3072, 768, ("norm", "gelu")),  # feed-forward block
        (768, 3072, ("added",)),
        (128, 768, ("norm", "apart")),  # cross-attention, of every other row
        (768, 128, ("added", "apart")),
        (1024, 256, ("norm", "gelu")),  # local transformer
        (2024, 256, ("norm", "bias")),  # a codebook's logits
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "-".join(value),
)
def test_products_of_few_rows_at_full_size(dtype, rows, outputs, inputs, options):
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    space = 2 if "apart" in options else 1
    x, weight = noise(space * rows, inputs)[::space], noise(outputs, inputs) * inputs**-0.5
    bias = noise(outputs) if "bias" in options else None
    base = noise(space * rows, outputs)
    added = base.clone()[::space] if "added" in options else None
    norm = torch.nn.LayerNorm(inputs, bias=False).to(dtype) if "norm" in options else None
    if norm is not None:
        norm.weight.data = noise(inputs)
    with torch.inference_mode():
        wanted = F.linear(x if norm is None else norm(x), weight, bias)
        wanted = F.gelu(wanted, approximate="tanh") if "gelu" in options else wanted
        wanted = wanted if added is None else added + wanted
        with watched(a_few) as watch:
            out = added if "apart" in options and added is not None else None  # in place, as the decoder does
            got = fused.product(x, weight, bias, norm=norm, gelu="gelu" in options, added=added, out=out)
    where = torch.zeros(got.shape, dtype=torch.bool)
    for index in range(rows):
        where[index] = watch.last.written(got[index])
    close(got, wanted, where)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize(
    ("streams", "by_parts"), [(1, False), (2, False), (8, False), (32, False), (1, True), (2, True)]
)
def test_self_attention_at_full_size(dtype, streams, by_parts):
    """Histories of every length up to the longest, rows so far apart that 32 bits do not count the elements between."""
    heads, head_width, positions = FULL.heads, FULL.width // FULL.heads, 864
    rows, generator = 2 * streams, torch.Generator().manual_seed(0)
    distance = (1 << 31) // (rows - 1) + 64
    memory, copies = [], []
    for _ in range(2):
        far = vast(distance * rows, dtype).as_strided(
            (rows, heads, positions, head_width), (distance, positions * head_width, head_width, 1)
        )
        near = torch.randn(rows, heads, positions, head_width, generator=generator).to(dtype)
        far.copy_(near)
        memory.append(far)
        copies.append(near)
    lengths = torch.tensor([positions + 7, 110, 127, 128, 129, 256, 500, positions - 1] * 4)[:streams]
    if by_parts:
        lengths = lengths.roll(1) if streams == 1 else torch.tensor([257, 1])
    qkv = torch.randn(rows, 3 * heads * head_width, generator=generator).to(dtype)
    attention = SimpleNamespace(n_heads=heads, d_head=head_width, scale=head_width**-0.5)
    if by_parts:
        with watched(backwards) as watch:
            got = fused._attend_by_parts(qkv, *memory, lengths, attention)
        for launch in watch.launches:
            launch.check_programs_are_apart()
        where = torch.ones(got.shape, dtype=torch.bool)
    else:
        with watched(a_few) as watch:
            got = fused._attend(qkv, *memory, lengths, attention)
        where = watch.last.written(got)
    at = lengths.clamp(max=positions - 1).repeat_interleave(2)
    query, key, value = qkv.view(rows, 3, heads, head_width).unbind(1)
    for near, new in zip(copies, (key, value), strict=True):
        near[torch.arange(rows), :, at] = new
    mask = (torch.arange(positions) <= at[:, None])[:, None, None]
    wanted = F.scaled_dot_product_attention(query[:, :, None].float(), *(own.float() for own in copies), attn_mask=mask)
    close(got, wanted.flatten(1).to(dtype), where)
    for far, near in zip(memory, copies, strict=True):
        for row, head in ((0, 0), (rows - 1, heads - 1)):
            assert torch.equal(far[row, head], near[row, head])


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize(("heads", "number"), [(1, 0), (1, 7), (4, 3)])
def test_a_product_looks_back_at_a_steps_own_positions(dtype, heads, number):
    """What comes later is not there yet: it is not looked at."""
    width, rows, positions = FULL.local_width, 4, 8
    generator = torch.Generator().manual_seed(number)
    qkv = torch.randn(positions, rows, 3 * width, generator=generator).to(dtype)
    qkv[number + 1 :] = float("nan")
    source = fused.Attention(heads, positions=positions, number=number, scale=(width // heads) ** -0.5)
    with watched(backwards):
        got = fused.product(qkv, torch.eye(width).to(dtype), source=source)
    query, key, value = qkv[: number + 1].view(number + 1, rows, 3, heads, -1).float().permute(2, 1, 3, 0, 4)
    wanted = F.scaled_dot_product_attention(query[:, :, -1:], key, value)
    close(got, wanted.flatten(1).to(dtype))


@pytest.mark.parametrize("detection", ["any", "all", "zero_cb"])
@pytest.mark.parametrize(("stacking", "sampled"), [(1, True), (2, True), (2, False)])
def test_the_conclusion_is_that_of_pytorch(detection, stacking, sampled):
    live, books, end = 64, 3, 9
    generator = torch.Generator().manual_seed(stacking)

    def dice(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    sampler = CodebookSampler.__new__(CodebookSampler)
    sampler._stacking, sampler._codebooks, sampler._end_token = stacking, books, end
    sampler._detection, sampler._sampled_ends_count = detection, sampled
    codes = sampler._stacked((10 * dice(live, stacking * books)).long().where(dice(live, 1) < 0.7, torch.tensor(end)))
    likely = dice(live, stacking, books) < 0.5
    unused = torch.empty(0)
    state = SamplingState(unused, unused, 1, unused, unused, dice(live) < 0.3, dice(live) < 0.1)
    sampling = Sampling(state, (20 * dice(live)).long(), dice(live) < 0.5)
    told, kept = [], []
    for fuse in (False, True):
        newest, steps = torch.full((live + 1, books, stacking), -1), torch.arange(live + 1)
        lengths = steps + 110
        runner = SimpleNamespace(
            _newest=newest, _steps=steps, _cache=SimpleNamespace(lengths=lengths), _sampler=sampler
        )
        conclude = fused.FusedConclusion(sampler, newest, steps, lengths)
        with watched(backwards) as watch:
            told.append(
                (conclude if fuse else functools.partial(ModelRunner._conclude_step, runner))(codes, likely, sampling)
            )
        if fuse:
            watch.last.check_programs_are_apart()
        kept.append((newest, steps, lengths))
    assert torch.equal(*told)
    assert 0 < int((told[0][:, 0] < stacking).sum()) < live
    for plain, ours in zip(*kept, strict=True):
        assert torch.equal(plain, ours)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("text", [9, 128, 130, 1500])
@pytest.mark.parametrize("follows", [True, False], ids=["aligned, with prior", "without"])
def test_cross_attention_at_full_size(dtype, text, follows):
    """Short texts and long ones in one batch, the prior on and off."""
    head_width, most_text, live = FULL.cross_head, FULL.max_text, 3
    generator = torch.Generator().manual_seed(text)
    lengths = torch.tensor([text, 1 + text // 2, 3])
    exists = torch.arange(most_text) < lengths[:, None]
    keys, values = (torch.randn(live, 1, most_text, head_width, generator=generator).to(dtype) for _ in range(2))
    query = torch.randn(live, head_width, generator=generator).to(dtype)
    prior = torch.rand(live, most_text, generator=generator)[:, :text]
    active = torch.tensor([True, False, True])
    before = torch.rand(live, text, generator=generator)
    alignment, got = before.clone(), torch.full_like(query, float("nan"))
    padded = triton_power(text)
    tiny = torch.finfo(prior.dtype).tiny
    with watched(backwards) as watch:
        kernels.read_text[(live,)](
            query, keys, values, exists, prior, active, alignment, got, head_width**-0.5, 0.25, tiny, head_width, text,
            most_text, prior.stride(0),
            HEADS=1, PRIOR=follows, ALIGN=2 * follows, SHORT=min(fused.SHORT_TEXT_TOKENS, padded), TEXT=padded,
            PART=fused.TEXT_PART, WIDTH=head_width, EARLY=False, num_warps=8, launch_pdl=False,
        )  # fmt: skip
    watch.last.check_programs_are_apart()
    scores = torch.einsum("nw,ntw->nt", query.float(), keys[:, 0, :text].float()) * head_width**-0.5
    weights = scores.masked_fill(~exists[:, :text], float("-inf")).softmax(dim=1)
    if follows:
        weights = weights * torch.where(active[:, None], prior + tiny, 1.0)
        weights = weights / weights.sum(dim=1, keepdim=True)
    close(got, torch.einsum("nt,ntw->nw", weights.to(dtype).float(), values[:, 0, :text].float()).to(dtype))
    close(alignment, before + 0.25 * weights if follows else before)


def triton_power(number: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << (number - 1).bit_length()


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("live", [1, 8])
@pytest.mark.parametrize("scale", [3.0, 0.3, 0.01], ids="logits of {}".format)
def test_the_draw_is_pytorchs_at_full_size(dtype, live, scale):
    """Greedy and sampled, the end forbidden, forced and free, for scores of every size."""
    tokens, end, width = 2024, 2017, FULL.local_width
    generator = torch.Generator().manual_seed(live)
    logits = (scale * torch.randn(2 * live, tokens, generator=generator)).to(dtype)
    table = torch.randn(tokens, width, generator=generator).to(dtype)
    projected = torch.randn(tokens, 3 * width, generator=generator).to(dtype)
    forbidden = torch.arange(tokens) > end
    for temperature, top_k in ((0.0, 20), (0.7, 1), (0.7, 80)):
        may_not = torch.rand(live, generator=generator) < 0.5
        must = torch.rand(live, generator=generator) < 0.3
        state = SamplingState(
            temperature=torch.full((live,), temperature),
            top_k=torch.full((live,), top_k),
            max_top_k=top_k,
            cfg_scale=torch.full((live,), 2.5),
            noise=torch.rand(live, 8, generator=generator),
            may_not_end=may_not,
            must_end=must,
        )
        codes = torch.full((live, 8), -1)
        following = torch.full((2 * live, width), float("nan"), dtype=dtype)
        qkv = torch.full((2 * live, 3 * width), float("nan"), dtype=dtype)
        with watched(backwards) as watch:
            kernels.draw[(live,)](
                logits, forbidden, may_not, must, state.cfg_scale, state.temperature, state.top_k, state.noise[:, 3:],
                table, projected, codes[:, 3:], following, qkv, end, tokens, 8, 8, width,
                FOLLOWS=True, TOKENS=2048, WIDTH=width, QKV=1024, EARLY=False, num_warps=8, launch_pdl=False,
            )  # fmt: skip
        watch.last.check_programs_are_apart()
        scores = _guide(logits.float().view(live, 2, tokens), state.cfg_scale).masked_fill(forbidden, float("-inf"))
        scores[:, end] = scores[:, end].masked_fill(may_not, float("-inf"))
        scores[must] = float("-inf")
        scores[must, end] = 0.0
        wanted = _draw(scores, state, state.noise[:, 3])
        assert torch.equal(codes[:, 3], wanted)
        assert (codes[:, [0, 1, 2, 4, 5, 6, 7]] == -1).all()
        assert torch.equal(following, table[wanted].repeat_interleave(2, dim=0))
        assert torch.equal(qkv, projected[wanted].repeat_interleave(2, dim=0))


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_embedding_at_full_size(dtype):
    live, tables, size = 5, 8, 2024
    generator = torch.Generator().manual_seed(0)
    books = torch.nn.ModuleList(torch.nn.Embedding(size, FULL.width, dtype=dtype) for _ in range(tables))
    positions = torch.nn.Embedding(FULL.max_positions, FULL.width, dtype=dtype)
    model = SimpleNamespace(audio_embeddings=books, decoder=SimpleNamespace(position_embeddings=positions))
    lengths = torch.tensor([0, 110, 500, 863, 2000])
    cache = SimpleNamespace(lengths=lengths, keys=torch.empty(1, 1, 1, 864, 1))
    codes = torch.randint(0, size, (live, tables, 1), generator=generator)
    codes[0] = size - 1
    with torch.inference_mode():
        wanted = sum(book(codes[:, index, 0]).float() for index, book in enumerate(books)) / tables
        wanted = (wanted + positions(lengths.clamp(max=863)).float()).to(dtype).repeat_interleave(2, dim=0)
        with watched(every) as watch:
            got = fused.FusedEmbedding(model, cache)(codes)
    watch.last.check_programs_are_apart()
    close(got, wanted)
