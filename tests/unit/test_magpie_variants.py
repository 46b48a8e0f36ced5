"""Kinds of checkpoints: frame stacking, deeper local transformers, no guidance, other languages; others are refused."""

import contextlib
import io

import numpy as np
import pytest
import torch
from support_magpie import recorded

from magpie_engine.checkpoint import check_supported, restore
from magpie_engine.engine import SpeechEngine
from magpie_engine.errors import CheckpointError
from magpie_engine.events import AudioChunk
from magpie_engine.request import SpeechRequest
from magpie_engine.settings import EngineSettings
from triton_voice.checkpoints import magpie

STEPS = 16
LETTERS = {
    "de": "Guten Tag, können Sie das wiederholen?",
    "es": "Buenos días, ¿qué hora es?",
    "it": "Buongiorno, che ore sono?",
    "vi": "Xin chào, mấy giờ rồi?",
    "hi": "नमस्ते, समय क्या है?",
}


@pytest.fixture(scope="module", params=[(2, 1), (1, 2), (2, 2)], ids=lambda p: f"stacking {p[0]}, local layers {p[1]}")
def variant(request, tmp_path_factory):
    stacking, layers = request.param
    return build(tmp_path_factory.mktemp("variant"), stacking=stacking, local_layers=layers)


def build(folder, **changes):
    with contextlib.redirect_stdout(io.StringIO()):
        checkpoint, codec = magpie.make(folder, "tiny", **changes)
    settings = EngineSettings(
        checkpoint=str(checkpoint), codec=str(codec), device="cpu", max_streams=3, normalizer="light"
    )
    return settings, restore(settings)


@torch.inference_mode()
def reference(model, text, speaker, use_cfg=True):
    model.use_kv_cache_for_inference = True
    model.inference_parameters.temperature = 0.0
    model.inference_parameters.max_decoder_steps = STEPS
    tokens = torch.tensor([[*model.tokenizer.encode(text=text, tokenizer_name="english_phoneme"), model.eos_id]])
    batch = {"text": tokens, "text_lens": torch.tensor([tokens.shape[1]]), "speaker_indices": speaker}
    with contextlib.redirect_stdout(io.StringIO()):
        out = model.infer_batch(batch, use_cfg=use_cfg, use_local_transformer_for_inference=True)
    model.decoder.reset_cache(use_cache=False)
    model.local_transformer.reset_cache(use_cache=False)
    return out.predicted_codes[0], out.predicted_audio[0].numpy()


def speak(engine, texts, **parameters):
    spoken = []
    for text in texts:
        events = []
        request = SpeechRequest.from_parameters(text, {"voice": "leo"} | parameters, engine.catalog)
        spoken.append((recorded(engine.submit(request, events.append)), events))
    for _ in range(200):
        engine.step()
    return [
        (torch.cat(codes, dim=1), np.concatenate([event.samples for event in events if isinstance(event, AudioChunk)]))
        for codes, events in spoken
    ]


def test_speaks_the_codes_of_infer_batch(variant):
    settings, model = variant
    texts = ["hello world this is a test", "please turn on the lights", "yes"]
    expected = [reference(model, text, 4) for text in texts]
    spoken = speak(SpeechEngine(model, settings), texts)
    for (codes, samples), (wanted, audio) in zip(spoken, expected, strict=True):
        assert torch.equal(codes, wanted)
        assert np.abs(samples / 32767 - audio).max() < 1e-4


def test_frame_stacking_ends_within_a_stack_where_infer_batch_ends(variant):
    settings, model = variant
    heads = model.final_proj.bias.data.view(-1, model.num_all_tokens_per_codebook)
    before = heads.clone()
    heads[:, model.audio_eos_id] = 1.5
    try:
        lengths = set()
        for text in ("hello world this is a test", "thank you very much", "yes", "what time is it"):
            wanted, _ = reference(model, text, 4)
            codes, _ = speak(SpeechEngine(model, settings), [text])[0]
            assert torch.equal(codes, wanted)
            lengths.add(codes.shape[1])
        assert min(lengths) < STEPS
    finally:
        heads.copy_(before)


def test_without_guidance_speaks_the_codes_of_infer_batch(tiny):
    settings = EngineSettings(checkpoint=str(tiny.magpie), codec=str(tiny.codec), device="cpu", normalizer="light")
    model = restore(settings)
    text = "please turn on the lights"
    wanted, _ = reference(model, text, 4, use_cfg=False)
    guided, _ = reference(model, text, 4)
    codes, _ = speak(SpeechEngine(model, settings), [text], cfg_scale=1.0)[0]
    assert torch.equal(codes, wanted)
    assert not torch.equal(codes, guided)


def test_every_language_whose_tokenizer_needs_no_download_is_spoken(tmp_path):
    settings, model = build(tmp_path, languages=tuple(LETTERS))
    engine = SpeechEngine(model, settings)
    assert set(engine.catalog.languages) == {"en", "fr", *LETTERS}
    model.inference_parameters.max_decoder_steps = STEPS
    for language, text in LETTERS.items():
        events = []
        request = SpeechRequest.from_parameters(text, {"language": language, "seed": 1}, engine.catalog)
        engine.submit(request, events.append)
        while engine.stats().active or engine.stats().queued:
            engine.step()
        assert sum(len(event.samples) for event in events if isinstance(event, AudioChunk)) >= STEPS * 1024, language
        assert [word.word for event in events for word in event.words] == text.split(), language


def test_low_precision_speaks(tiny):
    settings = EngineSettings(
        checkpoint=str(tiny.magpie), codec=str(tiny.codec), device="cpu", normalizer="light", precision="bfloat16"
    )
    model = restore(settings)
    assert model.decoder.layers[0].pos_ff.proj.conv.weight.dtype == torch.bfloat16
    (_, first), (_, again) = speak(SpeechEngine(model, settings), ["hello world"] * 2, seed=3, max_seconds=0.5)
    assert len(first) == 10 * 1024 and first.std() > 100
    assert np.array_equal(first, again)


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("model_type", "multi_encoder_context_tts", "model_type 'multi_encoder_context_tts'"),
        ("decoder.use_moe", True, "mixture of experts"),
        ("decoder.use_learnable_pos_emb", False, "decoder without learnable positions"),
        ("cfg.local_transformer_type", "maskgit", "local_transformer_type 'maskgit'"),
        ("baked_context_embedding", None, "no baked speakers"),
    ],
)
def test_other_kinds_are_refused_by_name(tiny, attribute, value, said):
    settings = EngineSettings(checkpoint=str(tiny.magpie), codec=str(tiny.codec), device="cpu")
    model = restore(settings)
    *path, name = attribute.split(".")
    owner = model
    for part in path:
        owner = getattr(owner, part)
    setattr(owner, name, value)
    with pytest.raises(CheckpointError, match=f"of a kind that is not supported: .*{said}"):
        check_supported(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_speak_the_codes_of_the_eager_step(tiny):
    common = {"checkpoint": str(tiny.magpie), "codec": str(tiny.codec), "device": "cuda", "normalizer": "light"}
    spoken = []
    for graphs in (0, 1):
        settings = EngineSettings(**common, cuda_graphs=graphs, max_streams=3)
        engine = SpeechEngine(restore(settings), settings)
        engine.warm_up()
        assert bool(engine._runner._graphs) == bool(graphs)
        spoken.append(speak(engine, ["hello world this is a test", "thank you very much"], temperature=0.0))
    for (eager, _), (graphed, _) in zip(*spoken, strict=True):
        assert torch.equal(eager, graphed)
