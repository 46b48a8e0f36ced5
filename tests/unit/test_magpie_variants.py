"""Kinds of checkpoints: frame stacking, deeper local transformers, no guidance, other languages; others are refused."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nemo.collections.tts.parts.utils.tts_dataset_utils import DEFAULT_LANGUAGE_THRESHOLDS
from support_magpie import fresh_model, recorded
from transformers import ByT5Tokenizer

from magpie_engine.checkpoint import check_supported, restore
from magpie_engine.engine import SpeechEngine
from magpie_engine.errors import CheckpointError
from magpie_engine.events import AudioChunk
from magpie_engine.request import SpeechRequest
from magpie_engine.runner import ModelRunner
from magpie_engine.settings import EngineSettings
from triton_voice.checkpoints import magpie
from triton_voice.checkpoints.pack import repack

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


def test_a_long_text_is_spoken_to_its_end_and_alike_in_company(variant, monkeypatch):
    """Several segments, also with frames stacked: all words in order, and the same codes beside others."""
    settings, model = variant
    monkeypatch.setitem(DEFAULT_LANGUAGE_THRESHOLDS.thresholds, "en", 5)
    monkeypatch.setattr(model.inference_parameters, "max_decoder_steps", 40)
    text = "Hello world, this is a test. Turn on the lights. What time is it?"
    engine = SpeechEngine(model, settings)

    def say(seed):
        events = []
        sampled = {"voice": "leo", "seed": seed, "temperature": 0.7}
        request = SpeechRequest.from_parameters(text, sampled, engine.catalog)
        return recorded(engine.submit(request, events.append)), events

    spoken = [say(3), say(4)]
    while engine.stats().active or engine.stats().queued:
        engine.step()
    alone = say(3)
    while engine.stats().active or engine.stats().queued:
        engine.step()
    (codes, events), (other, _), (again, _) = *spoken, alone
    assert [word.word for event in events for word in event.words] == text.split()
    codes, other, again = (torch.cat(own, dim=1) for own in (codes, other, again))
    assert torch.equal(codes, again)
    assert codes.shape[1] > engine.catalog.max_frames  # of one segment
    assert codes.shape != other.shape or not torch.equal(codes, other)
    assert sum(len(event.samples) for event in events if isinstance(event, AudioChunk)) == 1024 * codes.shape[1]


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
    model = fresh_model(settings)
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


def with_tokenizer(monkeypatch, name, config):
    """Has the next checkpoints that are made tokenize a language so."""
    make = magpie._tokenizers
    monkeypatch.setattr(magpie, "_tokenizers", lambda *args: make(*args) | {name: config})


def speak_once(engine, text, language):
    events = []
    request = SpeechRequest.from_parameters(text, {"language": language, "seed": 1, "max_seconds": 0.3}, engine.catalog)
    engine.submit(request, events.append)
    while engine.stats().active or engine.stats().queued:
        engine.step()
    assert sum(len(event.samples) for event in events if isinstance(event, AudioChunk)) == 6 * 1024
    return events


def test_byt5_from_the_hub_needs_no_download(tmp_path, monkeypatch):
    """Without a folder one is made, with one it is used: the tokens are the text's bytes, three special ones before."""
    folder = tmp_path / "byt5-local"
    ByT5Tokenizer().save_pretrained(folder)
    with_tokenizer(monkeypatch, "french_chartokenizer", {"_target_": "AutoTokenizer", "pretrained_model": str(folder)})
    settings, model = build(tmp_path / "checkpoint")
    repack(Path(settings.checkpoint), {str(folder): "google/byt5-small"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = "déjà vu"
    for byt5 in ("", str(folder)):
        model = restore(replace(settings, byt5=byt5))
        first = model.tokenizer.encode(text="a", tokenizer_name="french_chartokenizer")[0] - ord("a")
        tokens = model.tokenizer.encode(text=text, tokenizer_name="french_chartokenizer")
        assert [token - first for token in tokens][: len(text.encode())] == list(text.encode())
        speak_once(SpeechEngine(model, settings), text, "fr")
    with pytest.raises(CheckpointError, match=r"MAGPIE_BYT5 names .*gone.*no such folder"):
        restore(replace(settings, byt5=str(tmp_path / "gone")))


def test_chinese_is_spoken_with_its_dictionary(tmp_path, monkeypatch):
    dictionary = tmp_path / "pinyin.txt"
    dictionary.write_text("ni\tn i\nhao\th ao\nshi\tsh i\njie\tj ie\n", encoding="utf-8")
    g2p = {
        "_target_": "nemo.collections.tts.g2p.models.zh_cn_pinyin.ChineseG2p",
        "phoneme_dict": str(dictionary),
        "word_segmenter": "jieba",
    }
    chinese = magpie._TOKENIZERS + "ChinesePhonemesTokenizer"
    with_tokenizer(monkeypatch, "mandarin_phoneme", {"_target_": chinese, "g2p": g2p})
    settings, model = build(tmp_path / "checkpoint")
    events = speak_once(SpeechEngine(model, settings), "你好, 世界。", "zh")
    assert next(word.word for event in events for word in event.words).startswith("你")


def test_japanese_is_spoken_or_without_its_dictionary_refused_by_name(tmp_path, monkeypatch):
    g2p = {"_target_": "nemo.collections.tts.g2p.models.ja_jp_ipa.JapaneseKatakanaAccentG2p"}
    japanese = magpie._TOKENIZERS + "JapanesePhonemeTokenizer"
    with_tokenizer(monkeypatch, "japanese_phoneme", {"_target_": japanese, "g2p": g2p})
    settings, model = build(tmp_path / "checkpoint")
    import pyopenjtalk  # may look for its dictionary as soon as it is imported

    try:
        pyopenjtalk.g2p("はい")
    except OSError:  # there is none, and it cannot be fetched
        refusal = "'japanese_phoneme' for the language 'ja' does not work here.*install.*open-jtalk-mecab-naist-jdic"
        with pytest.raises(CheckpointError, match=refusal):
            SpeechEngine(model, settings)
    else:
        events = speak_once(SpeechEngine(model, settings), "はい、そうです。", "ja")
        assert next(word.word for event in events for word in event.words).startswith("は")


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
@pytest.mark.parametrize("texts", [1, 3], ids="{} at once".format)
def test_fused_kernels_and_cuda_graphs_speak_the_codes_of_pytorchs_step(tiny, monkeypatch, texts):
    """Few rows and many, with the prior and several segments' worth of steps; the fused kernels are really used."""
    common = {"checkpoint": str(tiny.magpie), "codec": str(tiny.codec), "device": "cuda", "normalizer": "light"}
    lines = ["hello world this is a test", "thank you very much", "please turn on the lights"][:texts]
    spoken = []
    for fused, graphs in ((False, 0), (True, 0), (True, 1)):
        settings = EngineSettings(**common, cuda_graphs=graphs, max_streams=3)
        with monkeypatch.context() as patch:
            if not fused:
                patch.setattr(ModelRunner, "_use_fused_kernels", lambda self: None)
            engine = SpeechEngine(fresh_model(settings), settings)
        engine.warm_up()
        assert engine._runner._decoder.reads_own_length is fused
        assert bool(engine._runner._graphs) == bool(graphs)
        spoken.append(speak(engine, lines, temperature=0.0))
    for (plain, audio), *others in zip(*spoken, strict=True):
        for codes, samples in others:
            assert torch.equal(plain, codes)
            assert np.abs(audio.astype(int) - samples).max() <= 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scale", [3.0, 0.3, 0.01], ids="logits of {}".format)
def test_the_fused_draw_is_pytorchs(scale):
    """Greedy and sampled, for scores of every size: its search for the k best goes through their bits."""
    from magpie_engine import kernels
    from magpie_engine.sampler import SamplingState, _draw, _guide

    live, tokens, end, width = 8, 2024, 2017, 256
    generator = torch.Generator("cuda").manual_seed(0)
    logits = scale * torch.randn(2 * live, tokens, generator=generator, device="cuda")
    logits[:, end] = -100.0
    forbidden = torch.arange(tokens, device="cuda") > end
    nobody = torch.zeros(live, dtype=torch.bool, device="cuda")
    for temperature, top_k in ((0.0, 20), (0.7, 1), (0.7, 20), (0.7, 80)):
        state = SamplingState(
            temperature=torch.full((live,), temperature, device="cuda"),
            top_k=torch.full((live,), top_k, device="cuda"),
            max_top_k=top_k,
            cfg_scale=torch.full((live,), 2.0, device="cuda"),
            noise=torch.rand(live, 1, generator=generator, device="cuda"),
            may_not_end=nobody,
            must_end=nobody,
        )
        codes = torch.full((live, 1), -1, device="cuda")
        kernels.draw[(live,)](
            logits, forbidden, nobody, nobody, state.cfg_scale, state.temperature, state.top_k, state.noise, None,
            None, codes, torch.empty(2 * live, width, device="cuda"), None, end, tokens, 1, 1, width,
            FOLLOWS=False, TOKENS=2048, WIDTH=width, QKV=0, EARLY=False, num_warps=8,
        )  # fmt: skip
        scores = _guide(logits.view(live, 2, tokens), state.cfg_scale).masked_fill(forbidden, float("-inf"))
        assert torch.equal(codes[:, 0], _draw(scores, state, state.noise[:, 0]))
