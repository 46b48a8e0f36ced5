"""Long texts and texts in pieces are spoken as upstream's `generate_speech` speaks them, and words are told in time."""

import json

import numpy as np
import pytest
import torch
from nemo.collections.tts.parts.utils.tts_dataset_utils import DEFAULT_LANGUAGE_THRESHOLDS, chunk_text_for_inference
from support_magpie import fresh_model, recorded

from magpie_engine.engine import SpeechEngine
from magpie_engine.events import AudioChunk, Finished, FinishReason
from magpie_engine.history import MAX_REMEMBERED
from magpie_engine.request import SpeechRequest
from magpie_engine.settings import EngineSettings

#: Enough for the attention to come to the end of each of the sentences.
STEPS = 100
FRAMES_PER_SECOND = 22050 / 1024
LIKELY_END = 1.5
TEXT = "Hello world, this is a test. Turn on the lights. Yes. What time is it? Thank you very much, have a nice day!"
#: Words from which on texts are split in these tests: upstream's own threshold of 45 makes them slow.
SPLIT_WORDS = 10
#: A long sentence, and one of the length at which upstream looks for the speech outside of what it sees.
LOPSIDED = (
    "I would like to book a table for two at seven this evening and please turn on the lights in the kitchen. "
    "A a a a a a a a a a a a,,,,."
)


@pytest.fixture(scope="module")
def settings(tiny):
    return EngineSettings(
        checkpoint=str(tiny.magpie), codec=str(tiny.codec), device="cpu", max_streams=3, normalizer="light"
    )


@pytest.fixture
def model(settings):
    model = fresh_model(settings)
    model.use_kv_cache_for_inference = True
    model.inference_parameters.temperature = 0.0
    model.inference_parameters.max_decoder_steps = STEPS
    return model


@pytest.fixture(autouse=True)
def short_texts_are_long(monkeypatch):
    monkeypatch.setitem(DEFAULT_LANGUAGE_THRESHOLDS.thresholds, "en", SPLIT_WORDS)


def enable_ends(model):
    model.inference_parameters.ignore_finished_sentence_tracking = False
    heads = model.final_proj.bias.data.view(-1, model.num_all_tokens_per_codebook)
    heads[:, model.audio_eos_id] = LIKELY_END


@torch.inference_mode()
def reference(model, texts, speaker=2, ends=None):
    """What upstream says, sentence after sentence as in `do_tts`, with its KV cache: codes, attended positions.

    Args:
        model: The model.
        texts: The text, or a text for each piece, each of which is the end of the text for all that is known.
        speaker: Index of the voice.
        ends: For each piece whether upstream is told that it is the last.
    """
    state = model.create_chunk_state(batch_size=1)
    codes, attended, first = [], [], True
    for text in texts:
        chunks, lengths, _ = chunk_text_for_inference(text, "en", "english_phoneme", model.tokenizer, model.eos_id)
        for index, (tokens, length) in enumerate(zip(chunks, lengths, strict=True)):
            model.decoder.reset_cache(use_cache=True)
            before = len(state.last_attended_timesteps)
            out = model.generate_speech(
                {"text": tokens[None].long(), "text_lens": torch.tensor([length]), "speaker_indices": speaker},
                chunk_state=state,
                end_of_text=[index == len(chunks) - 1],
                beginning_of_text=first,
                use_cfg=True,
                use_local_transformer_for_inference=True,
            )
            state.end_indices.clear()  # the next piece goes on
            first = False
            codes.append(out.predicted_codes[0, :, : out.predicted_codes_lens[0]])
            begin = int(state.history_text_lens[0]) - length
            attended.append([own[0] - state.left_offset[0] - begin for own in state.last_attended_timesteps[before:]])
    model.decoder.reset_cache(use_cache=False)
    return codes, attended


def say(engine, text, **parameters):
    events = []
    request = SpeechRequest.from_parameters(text, {"voice": "aria"} | parameters, engine.catalog)
    return recorded(engine.submit(request, events.append)), events


def run(engine, steps=2000):
    for _ in range(steps):
        if not (engine.stats().active or engine.stats().queued):
            return
        engine.step()
    raise AssertionError("the engine did not come to rest")


def audio(events):
    return np.concatenate([event.samples for event in events if isinstance(event, AudioChunk)])


def words(events):
    return [word for event in events for word in event.words]


@pytest.mark.parametrize("ends", [False, True], ids=["cut", "ended"])
def test_a_long_text_is_spoken_as_upstream_speaks_it(model, settings, ends):
    if ends:
        enable_ends(model)
    expected, _ = reference(model, [TEXT])
    lengths = [codes.shape[1] for codes in expected]
    assert len(lengths) == 5 and len(set(lengths)) > 3, lengths  # else this test would show little
    engine = SpeechEngine(model, settings)
    codes, events = say(engine, TEXT)
    run(engine)
    assert torch.equal(torch.cat(codes, dim=1), torch.cat(expected, dim=1))
    with torch.inference_mode():
        all_codes = torch.cat(expected, dim=1)[None]
        whole, _ = model._codec_model.decode(tokens=all_codes, tokens_len=torch.tensor([sum(lengths)]))
    assert np.abs(audio(events) / 32767 - whole[0].numpy()).max() < 1e-4  # no seam between sentences
    assert isinstance(events[-1], Finished)


def test_long_texts_in_company_speak_the_same(model, settings):
    expected = torch.cat(reference(model, [TEXT])[0], dim=1)
    engine = SpeechEngine(model, settings)
    spoken = [say(engine, TEXT, utterance=f"u{number}") for number in range(2)]
    for _ in range(7):
        engine.step()
    spoken.append(say(engine, "thank you very much", voice="leo"))
    run(engine)
    for codes, _ in spoken[:2]:
        assert torch.equal(torch.cat(codes, dim=1), expected)


def test_without_the_history_the_codes_differ(model, settings, monkeypatch):
    """Negative control: the comparison notices a forgotten history."""
    expected = torch.cat(reference(model, [TEXT])[0], dim=1)
    engine = SpeechEngine(model, settings)
    monkeypatch.setattr(engine._runner, "history", lambda utterance: None)
    codes, _ = say(engine, TEXT)
    run(engine)
    assert not torch.equal(torch.cat(codes, dim=1), expected)


def test_pieces_of_an_utterance_go_on_where_the_last_one_ended(model, settings):
    enable_ends(model)
    pieces = ["Hello world, this is a test.", "What time is it in New York?", "Thank you very much!"]
    expected, _ = reference(model, pieces)
    assert len({codes.shape[1] for codes in expected}) > 1
    engine = SpeechEngine(model, settings)
    spoken = [say(engine, piece, utterance="turn 7") for piece in pieces]
    other, _ = say(engine, pieces[1])
    run(engine)
    for (codes, _), wanted in zip(spoken, expected, strict=True):
        assert torch.equal(torch.cat(codes, dim=1), wanted)
    assert not torch.equal(torch.cat(other, dim=1), expected[1])
    both = torch.cat(expected, dim=1)
    with torch.inference_mode():
        whole, _ = model._codec_model.decode(tokens=both[None], tokens_len=torch.tensor([both.shape[1]]))
    streamed = np.concatenate([audio(events) for _, events in spoken])
    assert np.abs(streamed / 32767 - whole[0].numpy()).max() < 1e-4  # nor between pieces
    starts = [word.start for _, events in spoken for word in words(events)]
    assert starts == sorted(starts) and starts[-1] > expected[0].shape[1] / FRAMES_PER_SECOND


def test_pieces_keep_voice_and_settings_and_wait_for_each_other(model, settings):
    engine = SpeechEngine(model, settings)
    _, first_events = say(engine, "yes", voice="leo", utterance="a", temperature=0.8, seed=3)
    request = SpeechRequest.from_parameters("maybe", {"utterance": "a"}, engine.catalog)
    second_events = []
    handle = engine.submit(request, second_events.append)
    assert (handle.request.speaker, handle.request.temperature) == (4, 0.8)
    engine.step()
    assert (engine.stats().active, engine.stats().queued) == (1, 1)  # there are free slots, but it is not its turn
    run(engine)
    assert isinstance(first_events[-1], Finished) and isinstance(second_events[-1], Finished)


def test_a_cancelled_piece_ends_the_utterance(model, settings):
    engine = SpeechEngine(model, settings)
    events = []
    request = SpeechRequest.from_parameters("hello world", {"utterance": "a"}, engine.catalog)
    handle = engine.submit(request, events.append)
    engine.step()
    engine.cancel(handle)
    fresh, _ = say(engine, "hello world", utterance="a")
    run(engine)
    alone, _ = say(engine, "hello world")
    run(engine)
    assert torch.equal(torch.cat(fresh, dim=1), torch.cat(alone, dim=1))


def test_idle_utterances_are_forgotten(model, settings):
    now = [0.0]
    engine = SpeechEngine(model, settings, clock=lambda: now[0])
    say(engine, "hello world", utterance="a", max_seconds=0.1)
    run(engine)
    now[0] = settings.utterance_idle_seconds + 1.0
    codes, _ = say(engine, "thank you", utterance="a", max_seconds=0.5)
    run(engine)
    alone, _ = say(engine, "thank you", max_seconds=0.5)
    run(engine)
    assert torch.equal(torch.cat(codes, dim=1), torch.cat(alone, dim=1))
    for number in range(MAX_REMEMBERED + 20):
        say(engine, "a", utterance=str(number), max_seconds=0.01)
        run(engine)
    assert len(engine._memory) <= MAX_REMEMBERED + 1


def test_a_segment_that_is_cut_by_the_step_limit_does_not_break_the_next(model, settings):
    """Upstream fails here with an IndexError."""
    model.inference_parameters.max_decoder_steps = 6
    with pytest.raises(IndexError):
        reference(model, [LOPSIDED])
    engine = SpeechEngine(model, settings)
    codes, events = say(engine, LOPSIDED)
    run(engine)
    assert sum(step.shape[1] for step in codes) >= 6 * 2
    assert events[-1].reason is FinishReason.LENGTH
    assert [word.word for word in words(events)] == LOPSIDED.split()


def test_there_is_no_cap_at_the_length_of_a_segment(model, settings):
    engine = SpeechEngine(model, settings)
    codes, _ = say(engine, " ".join([TEXT] * 2))
    run(engine)
    assert sum(step.shape[1] for step in codes) > 2 * STEPS
    limited, _ = say(engine, " ".join([TEXT] * 2), max_seconds=3.0)
    run(engine)
    assert sum(step.shape[1] for step in limited) == int(3.0 * FRAMES_PER_SECOND)


@pytest.mark.parametrize("text", ["Hello world, this is a test.", TEXT], ids=["short", "long"])
def test_words_begin_where_the_attention_reaches_them(model, settings, text):
    codes, attended = reference(model, [text])
    engine = SpeechEngine(model, settings)
    _, events = say(engine, text)
    run(engine)
    told = words(events)
    assert [word.word for word in told] == text.split()
    starts = [word.start for word in told]
    assert starts == sorted(starts) and len(set(starts)) > len(starts) // 3
    # The same from upstream's own record of the attention, by another way: tokens of each word counted from the front.
    expected, frame = [], 0
    chunks = chunk_text_for_inference(text, "en", "english_phoneme", model.tokenizer, model.eos_id)[2]
    for chunk, own, track in zip(chunks, codes, attended, strict=True):
        spoken = chunk.split()
        for index in range(len(spoken)):
            through = " ".join(spoken[: index + 1])
            begin = len(model.tokenizer.encode(text=through, tokenizer_name="english_phoneme"))
            begin -= len(model.tokenizer.encode(text=spoken[index], tokenizer_name="english_phoneme"))
            begin = min(begin, len(model.tokenizer.encode(text=chunk, tokenizer_name="english_phoneme")) - 3)
            reached = [step for step, position in enumerate(track[: own.shape[1]]) if position >= begin]
            expected.append((frame + (reached[0] if reached else own.shape[1] - 1)) / FRAMES_PER_SECOND)
        frame += own.shape[1]
    assert np.abs(np.array(starts) - expected).max() <= 1.5 / FRAMES_PER_SECOND
    # Negative control: words spread evenly over the utterance, which look right and are not.
    even = np.linspace(0, frame / FRAMES_PER_SECOND, len(starts), endpoint=False)
    assert np.abs(even - expected).max() > 5 / FRAMES_PER_SECOND


def test_words_come_with_the_chunk_in_which_they_begin(model, settings):
    engine = SpeechEngine(model, settings)
    _, events = say(engine, TEXT)
    run(engine)
    sent = 0
    for event in events[:-1]:
        begin, sent = sent / 22050, sent + len(event.samples)
        assert all(begin - 0.001 <= word.start <= sent / 22050 for word in event.words), json.dumps(str(event.words))
