"""The codec's training: its quick paths are NeMo's, a run can be interrupted, and the file that it leaves works."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support_training import interrupt, stage

from triton_voice.checkpoints.magpie import SHAPES
from triton_voice_training import codec as training
from triton_voice_training.cast import SAMPLE_RATE, SAMPLES_PER_FRAME
from triton_voice_training.codec_net import Quantizer, decode, encode, scale_latent
from triton_voice_training.runs import Run
from triton_voice_training.spectral import SpectralDistance

CPU = torch.device("cpu")
SHAPE = replace(SHAPES["trained"], codec_encoder_channels=12, codec_decoder_channels=64)
STEPS, FROZEN_AT = 5, 2
FRAMES = 12


@pytest.fixture(scope="module", autouse=True)
def short_crops():
    """The same work on less speech."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CROP_FRAMES", 3)
        patch.setattr(training, "LEAD_FRAMES", 2)
        yield


@pytest.fixture(scope="module")
def codec():
    """An untrained one whose codes differ."""
    torch.manual_seed(0)
    codec = training.build(SHAPE)
    scale_latent(codec, torch.randn(2, SAMPLES_PER_FRAME * FRAMES) * 0.1)
    return codec


def test_encoding_quantising_and_decoding_are_nemos(codec):
    torch.manual_seed(1)
    audio = torch.randn(2, SAMPLES_PER_FRAME * FRAMES) * 0.1
    quantizer = Quantizer(codec, CPU)
    with torch.no_grad():
        expected, lengths = codec.audio_encoder(audio=audio, audio_len=torch.full((2,), audio.shape[1]))
        latent = encode(codec, audio)
        assert torch.allclose(latent, expected, atol=1e-5)
        assert latent.std() > 0.5

        expected, codes = codec.vector_quantizer(inputs=latent, input_len=lengths)
        quantized, levels = quantizer.round(latent)
        assert torch.allclose(quantized, expected, atol=1e-6)
        assert torch.equal(quantizer.codes(levels), codes.transpose(0, 1))
        assert codes.unique().numel() > 50
        assert torch.equal(quantizer.levels(quantizer.codes(levels)), levels)
        assert torch.allclose(quantizer.latent(levels), expected, atol=1e-6)

        expected, _ = codec.audio_decoder(inputs=quantized, input_len=lengths)
        assert torch.allclose(decode(codec.audio_decoder, quantized), expected, atol=1e-6)
        assert expected.std() > 1e-4


def test_the_gradient_passes_through_the_quantiser(codec):
    latent = torch.randn(1, 32, 4, requires_grad=True)
    quantized, _ = Quantizer(codec, CPU).round(latent, torch.randn(1, 32, 4))
    quantized.sum().backward()
    assert (latent.grad > 0).all()


def test_spectra_tell_speech_from_noise():
    distance = SpectralDistance(SAMPLE_RATE)
    speech = torch.from_numpy(stage(["a"], [0]).audio.astype(np.float32) / 32768)[None]
    assert distance(speech, speech)[0] == 0
    near, far = (distance(speech + level * torch.randn_like(speech), speech)[0] for level in (1e-3, 1e-1))
    assert 0 < near < far


def begin(folder, start=None, lines=6):
    run = Run(folder, "codec", steps=STEPS)
    said = stage([f"line {index}" for index in range(lines)], [index % 5 for index in range(lines)])
    held_out = stage(["never trained"], [0])
    return training.CodecTraining(
        SHAPE, said, held_out, run, CPU, batch=2, together=FROZEN_AT / STEPS, seed=3, graphs=False, start=start
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    whole = begin(tmp_path_factory.mktemp("whole"))
    whole.train()
    return whole


@pytest.mark.parametrize("stopped_at", [2, 4])
def test_an_interrupted_run_gives_what_an_uninterrupted_one_gives(trained, tmp_path, monkeypatch, stopped_at):
    """Saved before and after the encoder is frozen; the step after that is lost each time."""
    first = begin(tmp_path)
    interrupt(training, first.run, stopped_at, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = begin(tmp_path)
    assert second.run.step == stopped_at - 1
    second.train()
    assert second.run.step == STEPS
    for name, weight in trained.codec.state_dict().items():
        assert torch.equal(second.codec.state_dict()[name], weight), name
    for name in (training.CODEC_FILE, training.CODES_FILE):
        assert (tmp_path / name).read_bytes() == (trained.run.folder / name).read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_the_exported_codec_gives_the_codes_that_were_frozen(trained):
    """NeMo restores the file, hears the speech and writes, but for rounding to half precision, the same codes."""
    from nemo.collections.tts.models import AudioCodecModel

    folder, said = trained.run.folder, trained.stage
    restored = AudioCodecModel.restore_from(str(folder / training.CODEC_FILE), map_location="cpu").eval()
    stored = np.load(folder / training.CODES_FILE)
    assert stored["texts"].tolist() == said.texts
    assert np.array_equal(stored["begins"], said.begins)
    assert stored["codes"].shape == (said.begins[-1], 8)
    agree = []
    for begin_, end in zip(said.begins[:-1], said.begins[1:], strict=True):
        audio = torch.from_numpy(said.audio[begin_ * SAMPLES_PER_FRAME : end * SAMPLES_PER_FRAME] / 32768).float()[None]
        with torch.no_grad():
            codes, _ = restored.encode(audio=audio, audio_len=torch.tensor([audio.shape[1]]))
        # At the edges the encoder sees the neighbour, as far as there is sound.
        agree.append((codes[0].T.numpy() == stored["codes"][begin_:end])[2:-2])
    assert np.concatenate(agree).mean() > 0.9


def test_pieces_of_the_speech_are_encoded_as_the_whole(trained, monkeypatch):
    audio = torch.from_numpy(trained.stage.audio).view(-1, SAMPLES_PER_FRAME)
    whole = training.encode_stage(trained.codec, trained.quantizer, audio)
    monkeypatch.setattr(training, "PIECE", 30)
    pieces = training.encode_stage(trained.codec, trained.quantizer, audio)
    assert (pieces == whole).float().mean() > 0.999


def test_another_training_begins_with_the_codes_of_an_earlier_one(trained, tmp_path):
    later = begin(tmp_path, start=trained.run.folder)
    assert torch.equal(later.levels, trained.levels)
    assert (tmp_path / training.CODES_FILE).exists()
    with pytest.raises(ValueError, match="those of other speech; speak as many replies with the same seed"):
        begin(tmp_path, start=trained.run.folder, lines=5)
