"""The engine speaks the codes that NeMo's own `infer_batch` with its KV cache speaks, whoever shares the batch."""

import contextlib
import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from support_magpie import fresh_model, recorded

from magpie_engine.engine import SpeechEngine
from magpie_engine.events import AudioChunk, Finished, FinishReason
from magpie_engine.request import SpeechRequest
from magpie_engine.settings import EngineSettings

FRAMES = 24
#: Biases of the end token, which make random weights end speech at a place that depends on text and speaker.
LIKELY_END, DRAWN_END = 1.5, 1.0
#: Of float32, between sums in another order.
LOGIT_TOLERANCE = 1e-4


#: What NeMo says of a text in a voice: codes and audio.
_known = {}


@dataclass(frozen=True)
class Line:
    text: str
    voice: str
    joins_at: int


LINES = (
    Line("hello world this is a test", "john", 0),
    Line("please turn on the lights in the kitchen and play some music", "jason", 5),
    Line("yes", "sofia", 11),  # short enough to be exempt from the prior
    Line("thank you very much", "aria", 12),
    Line("zebras, quixotically!", "leo", 13),  # in letters: not in the dictionary
)


@pytest.fixture(scope="module")
def settings(tiny):
    return EngineSettings(checkpoint=str(tiny.magpie), codec=str(tiny.codec), device="cpu", max_streams=3)


@pytest.fixture
def model(settings):
    model = fresh_model(settings)
    model.use_kv_cache_for_inference = True
    model.inference_parameters.temperature = 0.0
    model.inference_parameters.max_decoder_steps = FRAMES
    model.inference_parameters.min_generated_frames = FRAMES
    return model


def enable_ends(model, where):
    """Lets the parallel heads ("likely") or the local transformer ("drawn") end speech."""
    model.inference_parameters.min_generated_frames = 4
    if where == "likely":
        heads = model.final_proj.bias.data.view(-1, model.num_all_tokens_per_codebook)
        heads[:, model.audio_eos_id] = LIKELY_END
    else:
        for head in model.local_transformer_out_projections:
            head.bias.data[model.audio_eos_id] = DRAWN_END


@torch.inference_mode()
def reference(model, line):
    """What NeMo says: codes (codebooks, frames) and audio."""
    tokens = torch.tensor([[*model.tokenizer.encode(text=line.text, tokenizer_name="english_phoneme"), model.eos_id]])
    batch = {
        "text": tokens,
        "text_lens": torch.tensor([tokens.shape[1]]),
        "speaker_indices": ["john", "sofia", "aria", "jason", "leo"].index(line.voice),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        out = model.infer_batch(batch, use_cfg=True, use_local_transformer_for_inference=True)
    model.decoder.reset_cache(use_cache=False)
    model.local_transformer.reset_cache(use_cache=False)
    return out.predicted_codes[0], out.predicted_audio[0].numpy()


def known(model, line):
    """`reference` of the model as it was restored, which NeMo is asked for once."""
    key = line.text, line.voice
    if key not in _known:
        _known[key] = reference(model, line)
    return _known[key]


def speak(engine, lines, **parameters):
    """Runs the engine until all lines are over; returns for each its codes, samples and the reason of its end."""
    events = [[] for _ in lines]
    handles = [None] * len(lines)
    step = 0
    while not all(e and isinstance(e[-1], Finished) for e in events):
        for index, line in enumerate(lines):
            if line.joins_at == step:
                request = SpeechRequest.from_parameters(line.text, {"voice": line.voice} | parameters, engine.catalog)
                handles[index] = recorded(engine.submit(request, events[index].append))
        engine.step()
        step += 1
        assert step < 500
    codes = [torch.cat(handle, dim=1) for handle in handles]
    audio = [np.concatenate([e.samples for e in own if isinstance(e, AudioChunk)]) for own in events]
    return list(zip(codes, audio, [own[-1].reason for own in events], strict=True))


def alone(line):
    return [Line(line.text, line.voice, 0)]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.voice)
def test_alone_speaks_the_codes_of_infer_batch(model, settings, line):
    expected, audio = known(model, line)
    codes, samples, reason = speak(SpeechEngine(model, settings), alone(line))[0]
    assert torch.equal(codes, expected)
    assert reason is FinishReason.LENGTH
    assert np.abs(samples / 32767 - audio).max() < 1e-4  # half a step of int16 is 1.5e-5


def test_in_company_with_joins_and_leaves_speaks_the_codes_of_infer_batch(model, settings):
    expected = [known(model, line)[0] for line in LINES]
    # Five lines, three slots: two wait until others leave, and slots are moved.
    for (codes, _, _), wanted in zip(speak(SpeechEngine(model, settings), LINES), expected, strict=True):
        assert torch.equal(codes, wanted)


@pytest.mark.parametrize("where", ["likely", "drawn"])
def test_ends_where_infer_batch_ends(model, settings, where):
    enable_ends(model, where)
    expected = [reference(model, line)[0] for line in LINES]
    lengths = [codes.shape[1] for codes in expected]
    assert len(set(lengths)) > 2 and min(lengths) < FRAMES  # else this test would show nothing
    for (codes, _, reason), wanted in zip(speak(SpeechEngine(model, settings), LINES), expected, strict=True):
        assert torch.equal(codes, wanted)
        assert reason is (FinishReason.END if wanted.shape[1] < FRAMES else FinishReason.LENGTH)


@pytest.mark.parametrize("method", ["argmax_all", "argmax_zero_cb", "argmax_or_multinomial_zero_cb"])
def test_ends_by_each_rule_of_upstream(model, settings, method):
    enable_ends(model, "likely")
    model.inference_parameters.eos_detection_method = method
    model.inference_parameters.ignore_finished_sentence_tracking = False
    line = LINES[1]
    expected, _ = reference(model, line)
    assert torch.equal(speak(SpeechEngine(model, settings), alone(line))[0][0], expected)


def test_the_checkpoint_makes_text_and_speaker_matter(model):
    line = LINES[0]
    spoken = [known(model, line)[0]]
    spoken.append(known(model, Line(LINES[1].text, line.voice, 0))[0])
    spoken.append(known(model, Line(line.text, "leo", 0))[0])
    assert not any(torch.equal(spoken[a], spoken[b]) for a in range(3) for b in range(a))


def test_without_the_attention_prior_the_codes_differ(model, settings):
    """Negative control: the comparison notices a missing part of the engine."""
    expected, _ = known(model, LINES[1])
    model.inference_parameters.apply_attention_prior = False
    assert not torch.equal(speak(SpeechEngine(model, settings), alone(LINES[1]))[0][0], expected)


def test_without_guidance_the_codes_differ(model, settings):
    expected, _ = known(model, LINES[1])
    assert not torch.equal(speak(SpeechEngine(model, settings), alone(LINES[1]), cfg_scale=1.0)[0][0], expected)


def test_a_seed_gives_the_same_codes_in_any_company(model, settings):
    sampled = {"temperature": 0.7, "top_k": 80, "seed": 7}
    company = speak(SpeechEngine(model, settings), LINES, **sampled)
    for line, (codes, _, _) in list(zip(LINES, company, strict=True))[1:4:2]:
        assert torch.equal(speak(SpeechEngine(model, settings), alone(line), **sampled)[0][0], codes)
    other = speak(SpeechEngine(model, settings), alone(LINES[0]), **sampled | {"seed": 8})[0][0]
    assert not torch.equal(other, company[0][0])


def logits_of_upstream(model, line, codes, monkeypatch):
    """What NeMo draws each code from when it has been given the codes before it: logits before the top k, by draw."""
    from nemo.collections.tts.modules import magpietts_modules as modules

    clear, draws, seen = modules.clear_forbidden_logits, codes.T.flatten().tolist(), []

    def noting(logits, *args, **named):
        cleared = clear(logits, *args, **named)
        seen.append(cleared[0, 0].clone())
        return cleared

    def told(probabilities, count):  # instead of the dice: the codes that are to be taken
        return torch.full((len(probabilities), count), draws[len(seen) - 1])

    monkeypatch.setattr(modules, "clear_forbidden_logits", noting)
    monkeypatch.setattr(torch, "multinomial", told)
    model.inference_parameters.temperature = 0.7
    said, _ = reference(model, line)
    assert torch.equal(said, codes)  # it went along
    return torch.stack(seen)


@pytest.mark.parametrize("cfg_scale", [None, 1.5], ids=["usual guidance", "weak guidance"])
def test_with_sampling_the_logits_are_those_of_infer_batch(model, settings, monkeypatch, cfg_scale):
    """Dice differ, so upstream is led along the codes that were drawn here, and logits are compared draw by draw."""
    line, seen = LINES[1], []
    wishes = {"temperature": 0.7, "seed": 3} | ({} if cfg_scale is None else {"cfg_scale": cfg_scale})
    if cfg_scale is not None:
        model.inference_parameters.cfg_scale = cfg_scale
    engine = SpeechEngine(model, settings)
    restrict = engine._runner._sampler._restrict

    def noting(*args):
        seen.append(restrict(*args)[0].clone())
        return seen[-1][None].clone()

    monkeypatch.setattr(engine._runner._sampler, "_restrict", noting)
    codes = speak(engine, alone(line), **wishes)[0][0]
    ours = torch.stack(seen)
    theirs = logits_of_upstream(model, line, codes, monkeypatch)
    assert ours.shape == theirs.shape == (codes.numel(), ours.shape[1])
    assert torch.equal(ours.isinf(), theirs.isinf())  # the same tokens are forbidden
    finite = ours.isfinite()
    assert (ours - theirs)[finite].abs().max() < LOGIT_TOLERANCE
    # Negative control: one draw off, they are far apart.
    both = finite[1:] & finite[:-1]
    assert (ours[1:] - theirs[:-1])[both].abs().max() > 1000 * LOGIT_TOLERANCE


def test_sampling_stays_among_the_top_k(model, settings):
    greedy = speak(SpeechEngine(model, settings), alone(LINES[0]))[0][0]
    narrow = speak(SpeechEngine(model, settings), alone(LINES[0]), temperature=1.0, top_k=1, seed=3)[0][0]
    assert torch.equal(narrow, greedy)
