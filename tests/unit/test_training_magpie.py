"""Magpie's training: it computes what NeMo computes, reads as the server does, can be interrupted, and is served."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support_training import interrupt, stage

from magpie_engine.checkpoint import restore
from magpie_engine.engine import SpeechEngine
from magpie_engine.events import Finished
from magpie_engine.request import SpeechRequest
from magpie_engine.settings import EngineSettings
from triton_voice.checkpoints.magpie import SHAPES
from triton_voice_training import cast, codec, lines, world
from triton_voice_training import magpie as training
from triton_voice_training.codec_net import Quantizer
from triton_voice_training.runs import Run
from triton_voice_training.speech import spoken

CPU = torch.device("cpu")
SHAPE = replace(
    SHAPES["trained"], width=64, ffn=64, heads=2, cross_head=32, encoder_layers=1, decoder_layers=2, local_width=16,
    max_positions=128, max_steps=40, alignment_layers=(1,), prior_layers=(1,), codec_encoder_channels=12,
    codec_decoder_channels=64,
)  # fmt: skip
LEXICON = {
    "it": "it", "is": "iz", "seven": "sɛvən", "oh": "oʊ", "five": "fajv", "p": "pi", "m": "ɛm", "in": "in",
    "tokyo": "toʊkioʊ", "okay": "oʊkej", "the": "ðə", "timer": "tajmər", "stopped": "stapt",
}  # fmt: skip
TEXTS = ["It is seven oh five P M in Tokyo.", "Okay.", "The timer is stopped.", "Okay, it is five.", "It is in Tokyo."]
STEPS = 6


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """What the codec's training leaves: an untrained codec, and codes drawn at random."""
    folder = tmp_path_factory.mktemp("codec")
    torch.manual_seed(0)
    codec.pack(codec.build(SHAPE), folder / codec.CODEC_FILE)
    said = stage(TEXTS, range(5))
    drawn = np.random.RandomState(0).randint(0, 2016, (said.begins[-1], 8)).astype(np.int16)
    np.savez(folder / codec.CODES_FILE, codes=drawn, begins=said.begins, speakers=said.speakers, texts=said.texts)
    return folder


def begin(folder, codes, **changes):
    run = Run(folder, "magpie", steps=STEPS)
    held_out = stage(["The timer is five."], [2])
    return training.MagpieTraining(SHAPE, codes, held_out, LEXICON, run, CPU, batch=3, dropout=0.1, seed=1, **changes)


@pytest.fixture(scope="module")
def trained(codes, tmp_path_factory):
    whole = begin(tmp_path_factory.mktemp("whole"), codes)
    whole.train()
    return whole


@pytest.mark.parametrize("fade", [0.3, 1.0])
def test_the_losses_are_those_of_nemos_model_with_the_tables_filled_in(trained, fade):
    """Hidden states, codes, end and alignment: NeMo's own functions, from tokens and codes to the losses."""
    model, tables = trained.model.eval(), trained.tables
    tables.fill(model, trained.end.weight[0], trained.end.bias[0])
    batch = trained.lines.take(torch.tensor([0, 1, 3]))
    quantizer = Quantizer(model._codec_model, CPU)
    with torch.no_grad():
        ours = trained.losses(batch, fade)

        width = int(batch.frames.max())
        spoken_codes = quantizer.codes(batch.levels.flatten(2).transpose(1, 2))
        tokens = torch.full((3, 8, width + 2), model.audio_eos_id)
        tokens[:, :, 0] = model.audio_bos_id
        for row, frames in enumerate(batch.frames):
            tokens[row, :, 1 : frames + 1] = spoken_codes[row, :, :frames]
        lengths = batch.frames + 1
        text_mask = torch.arange(batch.text.shape[1]) < batch.text_lengths[:, None]
        text = model.encoder(model.embed_text(batch.text, text_mask), text_mask, cond=None, cond_mask=None)["output"]
        context = model.baked_context_embedding(batch.speakers).view(3, SHAPE.speaker_frames, SHAPE.width)
        past, _ = model.embed_audio_tokens(audio_tokens=tokens[:, :, :-1], audio_tokens_lens=lengths)
        even = lines.prior(lengths, batch.text_lengths, batch.text.shape[1], width + 1)
        even = torch.nn.functional.pad(even + fade * (1 - even), (0, 0, SHAPE.speaker_frames, 0), value=1.0)
        priors = [even if layer in SHAPE.alignment_layers else None for layer in range(SHAPE.decoder_layers)]
        logits, attention, hidden, _ = model.forward(
            torch.cat([context, past], 1), torch.ones(3, SHAPE.speaker_frames + width + 1, dtype=torch.bool),
            cond=text, cond_mask=text_mask, attn_prior=priors, multi_encoder_mapping=None,
        )  # fmt: skip
        hidden, logits = hidden[:, SHAPE.speaker_frames :], logits[:, SHAPE.speaker_frames :]
        target = tokens[:, :, 1:]
        local = model._lt_helper.compute_logits(hidden, target, targets_offset_by_one=False)
        nemos_codes, _ = model.compute_loss(local, target, lengths)
        scores = [attention[layer]["cross_attn_probabilities"][1] for layer in SHAPE.alignment_layers]
        nemos_alignment = model.compute_alignment_loss(scores, batch.text_lengths, lengths, SHAPE.speaker_frames)
        # The end's logit against a zero for every code.
        end = logits.unflatten(-1, (8, -1))[:, :, 0, model.audio_eos_id]
        is_end = (torch.arange(width + 1) == batch.frames[:, None]).float()
        counts = (torch.arange(width + 1) <= batch.frames[:, None]).float()
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(end, is_end, reduction="none")

    assert ours["codes"] == pytest.approx(_by_frames(model, local, target, counts), abs=1e-4)
    assert ours["codes"] == pytest.approx(float(nemos_codes), abs=1e-4)
    assert ours["end"] == pytest.approx(float((entropy * counts).sum() / counts.sum()), abs=1e-5)
    assert ours["alignment"] == pytest.approx(float(nemos_alignment) / model.alignment_loss_scale, rel=1e-3)
    model.train()


def _by_frames(model, logits, target, counts):
    """Cross-entropy of NeMo's logits, a frame at a time."""
    scores = logits.unflatten(-1, (8, -1)).log_softmax(-1)
    chosen = scores.gather(-1, target.transpose(1, 2)[..., None])[..., 0].mean(-1)
    return float(-(chosen * counts).sum() / counts.sum())


def test_the_prior_is_nemos_beta_binomial():
    from nemo.collections.tts.parts.utils.tts_dataset_utils import beta_binomial_prior_distribution

    made = lines.prior(torch.tensor([9, 5]), torch.tensor([6, 4]), 6, 9)
    for row, (frames, tokens) in enumerate(((9, 6), (5, 4))):
        expected = torch.tensor(beta_binomial_prior_distribution(tokens, frames, 1.0)).float()
        assert torch.allclose(made[row, :frames, :tokens], expected, atol=1e-5)
    assert not made[1, :, 4:].any()


def test_an_interrupted_run_gives_what_an_uninterrupted_one_gives(trained, codes, tmp_path, monkeypatch):
    first = begin(tmp_path, codes)
    interrupt(training, first.run, 4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = begin(tmp_path, codes)
    assert second.run.step == 3
    second.train()
    assert second.run.step == STEPS
    whole = trained._parameters()
    assert all(torch.equal(weight, whole[name]) for name, weight in second._parameters().items())
    for name in (training.MAGPIE_FILE, training.WEIGHTS_FILE):
        assert (tmp_path / name).stat().st_size == (trained.run.folder / name).stat().st_size
    assert (tmp_path / training.MAGPIE_FILE).read_bytes() == (trained.run.folder / training.MAGPIE_FILE).read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_sentences_without_meaning_are_learned_beside_the_script(codes, tmp_path):
    """In words of the script and in no order of its; their codes follow those of the codec's training."""
    salad = cast.salad(TEXTS, 40, seed=3)
    assert salad == cast.salad(TEXTS, 40, seed=3) != cast.salad(TEXTS, 40, seed=4)
    assert len(set(salad)) == 40 and not any(map(world.is_held_out, salad))
    assert cast.vocabulary(salad) == cast.vocabulary(TEXTS)
    said = stage(salad[:4], [speaker for speaker, _ in cast.deal(salad[:4])])
    model = begin(tmp_path / "without", codes).model._codec_model
    quantizer = Quantizer(model, CPU)
    levels = codec.encode_stage(model, quantizer, codec.on_device(said, CPU))
    codec.save_codes(tmp_path / training.SALAD_FILE, said, levels, quantizer)

    both = begin(tmp_path / "with", codes, more=tmp_path / training.SALAD_FILE).lines
    assert len(both) == len(TEXTS) + 4
    batch = both.take(torch.tensor([0, len(TEXTS) + 2]))
    assert batch.frames.tolist()[1] == said.lengths[2] and batch.speakers[1] == said.speakers[2]
    learned = batch.levels[1, : said.lengths[2]].flatten(1)
    assert torch.equal(learned, levels[said.begins[2] : said.begins[3]].long())


def test_what_is_forgotten_of_the_past_does_not_reach_the_losses(codes, tmp_path, monkeypatch):
    """Text and speaker alone tell what comes next to a line that has forgotten all."""
    one = begin(tmp_path, codes)
    one.model.train(False)
    batch = one.lines.take(torch.tensor([0, 3]))
    monkeypatch.setattr(one, "_local", lambda hidden, levels, is_end: hidden.new_zeros(hidden.shape[:2].numel(), 8, 16))
    other = replace(batch, levels=batch.levels.roll(1, 0))

    def hidden_end(batch):
        return float(one.losses(batch, fade=1.0)["end"])

    with torch.no_grad():
        assert hidden_end(batch) != hidden_end(other)
        monkeypatch.setattr(one, "_disturb", lambda levels: levels)
        monkeypatch.setattr(one, "_remembered", lambda lines, length: torch.zeros(lines, length, 1, 1))
        monkeypatch.setattr(one.model, "training", True)
        monkeypatch.setattr(training, "UNGUIDED", 0.0)
        assert hidden_end(batch) == hidden_end(other)


def test_another_training_begins_with_the_weights_of_an_earlier_one(trained, codes, tmp_path):
    later = begin(tmp_path, codes, start=trained.run.folder / training.WEIGHTS_FILE)
    trained._average.swap()
    learned = trained._parameters()
    for name, weight in later._parameters().items():
        assert torch.equal(weight, learned[name].half().float()), name
    trained._average.swap()


@pytest.fixture(scope="module")
def served(trained, codes, tmp_path_factory):
    """The exported checkpoint in the serving engine, greedy and without what only steers sampling."""
    path = tmp_path_factory.mktemp("served") / "magpie.nemo"
    with torch.no_grad():  # after six steps it says always the same: text and past are made to matter, the end unlikely
        for layer in trained.model.decoder.layers:
            layer.cross_attention.o_net.weight.mul_(20)
            layer.cross_attention.q_net.weight.mul_(8)
            layer.self_attention.o_net.weight.mul_(8)
        trained.tables.head.mul_(3)
        trained.tables.bias[:, -1] = -20
        trained.end.bias.fill_(-20)
        for name, weight in trained._parameters().items():
            trained._average._kept[name].copy_(weight)
    trained.export(path)
    settings = EngineSettings(
        checkpoint=str(path), codec=str(codes / codec.CODEC_FILE), device="cpu", normalizer="light", max_streams=1
    )
    model = restore(settings)
    model.inference_parameters.apply_attention_prior = False
    return SpeechEngine(model, settings)


def test_what_is_learned_is_what_is_served(trained, served):
    """The engine reads a text into the same tokens, and draws the codes that training finds the most likely."""
    text, speaker = "It is 7:05 PM in Tokyo.", 4
    wish = {"voice": cast.CAST[speaker].name, "temperature": 0.0, "cfg_scale": 1.0, "max_seconds": 1.5}
    drawn, events = [], []
    utterance = served.submit(SpeechRequest.from_parameters(text, wish, served.catalog), events.append)
    append = utterance.append

    def keep(step):
        drawn.append(step.clone())
        append(step)

    utterance.append = keep
    for _ in range(200):
        if not (served.stats().active or served.stats().queued):
            break
        served.step()
    assert isinstance(events[-1], Finished)
    (tokens,) = lines.read(trained.model, [spoken(text)], 1.0, 0)
    assert utterance.tokens == tuple(tokens)

    codes_drawn = torch.cat(drawn, 1)[None]
    assert len(codes_drawn[0].T.unique(dim=0)) > 5
    levels = Quantizer(trained.model._codec_model, CPU).levels(codes_drawn)[0].T.unflatten(1, (8, 4))[None]
    count = levels.shape[1]
    likely = {}
    surprise = trained.tables.surprise

    def watch(hidden, wanted, is_end):
        logits = torch.einsum("ngw,grw->ngr", hidden, trained.tables.head) + trained.tables.bias
        *values, _ = logits.split([*trained.tables.sizes, 1], dim=-1)
        likely["levels"] = torch.stack([own.argmax(-1) for own in values], -1)
        return surprise(hidden, wanted, is_end)

    trained.tables.surprise = watch
    trained.model.eval()
    with torch.no_grad():
        trained.losses(
            lines.Batch(
                torch.tensor([tokens]), torch.tensor([len(tokens)]), levels, torch.tensor([count]),
                torch.tensor([speaker]),
            ),
            fade=1.0,
        )  # fmt: skip
    trained.tables.surprise = surprise
    assert (likely["levels"][:count] == levels[0]).float().mean() > 0.98  # the file is rounded to half precision


def test_a_word_that_is_not_in_the_dictionary_is_spelled(trained):
    (unknown,) = lines.read(trained.model, ["Party."], 1.0, 0)
    assert len(set(unknown)) == len("Party.") + 1  # and the end
    some, again, all_, none = (
        lines.read(trained.model, ["The timer is stopped."], part, 0)[0] for part in (0.5, 0.5, 0.0, 1.0)
    )
    assert some == again
    assert len({tuple(some), tuple(all_), tuple(none)}) == 3
