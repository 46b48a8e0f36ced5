"""Trains the codec of Magpie-tiny: NanoCodec's layout, a quarter of its size, the voices of `cast.CAST` only.

Two phases. First encoder and decoder together, on spectra; quantisation is made noisy, so that what the codes say
survives a wrong level here and there, as a synthesiser will draw them. Then the encoder is frozen and the codes of all
speech are written (`codes.npz`): from here on Magpie can be trained. The decoder goes on alone, with discriminators,
on those codes.

    python -m triton_voice_training.codec --out build/codec --minutes 12
"""

from __future__ import annotations

import shutil
import wave
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from triton_voice_training import cast, world
from triton_voice_training.cast import SAMPLE_RATE, SAMPLES_PER_FRAME, Stage
from triton_voice_training.codec_net import Decoder, Quantizer, decode, encode, scale_latent
from triton_voice_training.discriminators import Discriminators
from triton_voice_training.runs import LOG_FILE, Average, Run, draw_log, learning_rate, pick_device, set_rate
from triton_voice_training.spectral import SpectralDistance
from triton_voice_training.speech import spoken

if TYPE_CHECKING:
    from triton_voice.checkpoints.magpie import Shape

CODES_FILE = "codes.npz"
CODEC_FILE = "codec.nemo"

#: Frames of a training crop, and of what is heard before it: its loss does not count, since the past is missing there.
CROP_FRAMES, LEAD_FRAMES = 16, 6
#: Rates of both phases, and steps over which they rise.
RATE_TOGETHER, RATE_DECODER, RATE_DISCRIMINATORS, WARM_UP = 1.5e-3, 4e-4, 4e-4, 100
#: Quantisation noise: part of the crops that have it, and its deviation in levels.
NOISY, NOISE = 0.5, 0.35
#: Least gain of a crop in the first phase.
LEAST_GAIN = 0.6
MEL_SCALE, CONVERGENCE_SCALE, FEATURE_SCALE = 8.0, 1.0, 2.0
AVERAGE_DECAY = 0.999
CLIP = 10.0
LOG_STEPS = 100
SAVE_EVERY_S = 60
#: Held-out sentences that are measured, and those kept to listen to.
HELD_OUT, SAMPLES = 40, 5
#: What is drawn of the log.
CURVES = {
    "mel": "mel distance",
    "features": "distance of the discriminators' features",
    "held_out_mel": "mel distance, held-out sentences",
    "codes_used": "codes in use, of 2016 in each codebook, in held-out sentences",
}
#: Frames encoded at once, and those around them that an encoder sees.
PIECE, HALO = 400, 16


def build(shape: Shape) -> Any:
    """Builds the untrained codec."""
    from nemo.collections.tts.models import AudioCodecModel

    from triton_voice.checkpoints.magpie import codec_config

    return AudioCodecModel(codec_config(shape)).train()  # in evaluation, its output would be clamped


@torch.no_grad()
def encode_stage(codec: Any, quantizer: Quantizer, audio: Tensor) -> Tensor:
    """Encodes speech in one go, (frames, 1024) int16 to levels (frames, 32) int8; utterances are apart by silence."""
    frames = len(audio)
    pieces = []
    for begin in range(0, frames, PIECE):
        first, last = max(0, begin - HALO), min(frames, begin + PIECE + HALO)
        latent = encode(codec, audio[first:last].flatten()[None].float() / 32768)
        levels = quantizer.round(latent)[1][0, :, begin - first : begin - first + PIECE]
        pieces.append(levels[:, : min(PIECE, frames - begin)].to(torch.int8).T)
    return torch.cat(pieces)


class CodecTraining:
    """State and steps of the training.

    Args:
        shape: Sizes.
        stage: Speech to learn from.
        held_out: Speech to measure.
        run: Budget and folder.
        device: To train on.
        batch: Crops a step.
        together: Part of the budget in which encoder and decoder learn together.
        seed: Of weights and crops.
        graphs: Whether the decoder runs as a CUDA graph in the second phase.
        start: Folder of an earlier training whose encoder, codes and decoder to begin the second phase with; a state
            in the run's folder goes before them.
    """

    def __init__(
        self, shape: Shape, stage: Stage, held_out: Stage, run: Run, device: torch.device, batch: int,
        together: float, seed: int, graphs: bool, start: Path | None = None,
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.run, self.stage, self.held_out = run, stage, held_out
        self._device, self._batch, self._together, self._graphs = device, batch, together, graphs
        self.codec = build(shape).to(device)
        self._audio = on_device(stage, device)
        self._random = torch.Generator(device).manual_seed(seed + 1)
        scale_latent(self.codec, self._crops(64 if device.type == "cuda" else 8)[0])
        self.quantizer = Quantizer(self.codec, device)
        self.spectral = SpectralDistance(SAMPLE_RATE).to(device)
        self.discriminators = Discriminators().to(device)
        self._optimizers = {
            "together": self._adam([*self.codec.audio_encoder.parameters(), *self.codec.audio_decoder.parameters()]),
            "decoder": self._adam(self.codec.audio_decoder.parameters()),
            "discriminators": self._adam(self.discriminators.parameters()),
        }
        self._average = Average(dict(self.codec.audio_decoder.named_parameters()), AVERAGE_DECAY)
        #: Levels of all frames once the encoder is frozen, (frames, 32).
        self.levels: Tensor | None = None
        self._frozen_at = 0
        if start is not None and not run.has_state:
            self._begin_with(start)
        stored = run.resume(**self._parts())
        if stored:
            self._frozen_at, self._together = stored["frozen_at"], stored["phase_share"]
            self._random.set_state(stored["crops"])
            if stored["levels"] is not None:
                self.levels = stored["levels"].to(device)

    def _begin_with(self, folder: Path) -> None:
        """Takes over an earlier training's codec and codes.

        Raises:
            ValueError: Its codes are those of other speech.
        """
        from nemo.collections.tts.models import AudioCodecModel

        earlier = AudioCodecModel.restore_from(str(folder / CODEC_FILE), map_location="cpu")
        self.codec.load_state_dict(earlier.state_dict())
        stored = np.load(folder / CODES_FILE)
        if not np.array_equal(stored["begins"], self.stage.begins):
            raise ValueError(
                f"the codes in {folder} are those of other speech; speak as many replies with the same seed"
            )
        codes = torch.from_numpy(stored["codes"].astype(np.int64)).to(self._device)
        self.levels = self.quantizer.levels(codes.T[None])[0].T.to(torch.int8)
        self._together = 0.0
        self._average = Average(dict(self.codec.audio_decoder.named_parameters()), AVERAGE_DECAY)
        if folder != self.run.folder:
            shutil.copy(folder / CODES_FILE, self.run.folder / CODES_FILE)

    def _parts(self) -> dict[str, Any]:
        return {"codec": self.codec, "judges": self.discriminators, "average": self._average} | self._optimizers

    def _adam(self, parameters: Any) -> torch.optim.Optimizer:
        fused = self._device.type == "cuda"
        return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.8, 0.99), weight_decay=1e-3, fused=fused)

    def train(self) -> None:
        """Trains until the budget is used, saving and sampling on the way."""
        saved = self.run.seconds
        for _ in self.run.steps():
            if self.run.seconds - saved > SAVE_EVERY_S:  # before a step: the state counts the steps that it has taken
                self.measure()
                self.save()
                saved = self.run.seconds
            if self.levels is None and self.run.progress >= self._together:
                self.freeze()
            values = self._learn_together() if self.levels is None else self._learn_decoder()
            if self.run.step % LOG_STEPS == 0:
                said = {name: float(value) for name, value in values.items()}
                if not np.isfinite(list(said.values())).all():
                    raise FloatingPointError(f"the codec's training diverged at step {self.run.step}: {said}")
                self.run.log(**said)
        if self.levels is None:
            self.freeze()
        self.measure()
        self.save()

    def save(self) -> None:
        """Keeps the state, the codec as it is, and the curves."""
        levels = None if self.levels is None else self.levels.cpu()
        self.run.save(**self._parts(), frozen_at=self._frozen_at, phase_share=self._together,
                      crops=self._random.get_state(), levels=levels)  # fmt: skip
        self.export()
        log = self.run.folder / LOG_FILE
        if log.exists():
            draw_log(log, self.run.folder / "codec.png", CURVES)

    def freeze(self) -> None:
        """Ends the first phase: the codes of all speech are final and written."""
        self.levels = encode_stage(self.codec, self.quantizer, self._audio)
        self._frozen_at = self.run.step
        # The decoder's average was that of another task.
        self._average = Average(dict(self.codec.audio_decoder.named_parameters()), AVERAGE_DECAY)
        self.export()  # first: who waits for the codes may read the codec
        save_codes(self.run.folder / CODES_FILE, self.stage, self.levels, self.quantizer)

    def _crops(self, count: int) -> tuple[Tensor, Tensor]:
        """Draws crops: audio (count, samples) and the frames' numbers (count, frames)."""
        length = CROP_FRAMES + LEAD_FRAMES
        first = torch.randint(0, len(self._audio) - length, (count, 1), generator=self._random, device=self._device)
        frames = first + torch.arange(length, device=self._device)
        return self._audio[frames].flatten(1).float() / 32768, frames

    def _noise(self, shape: torch.Size) -> Tensor:
        noisy = torch.rand(shape[0], 1, 1, generator=self._random, device=self._device) < NOISY
        return torch.randn(shape, generator=self._random, device=self._device) * (NOISE * noisy)

    def _learn_together(self) -> dict[str, Tensor]:
        audio, _ = self._crops(self._batch)
        gain = torch.rand(self._batch, 1, generator=self._random, device=self._device)
        audio = audio * (LEAST_GAIN + (1 - LEAST_GAIN) * gain)
        latent = encode(self.codec, audio)
        quantized, levels = self.quantizer.round(latent, self._noise(latent.shape))
        made = decode(self.codec.audio_decoder, quantized)
        heard = LEAD_FRAMES * SAMPLES_PER_FRAME
        mel, convergence = self.spectral(made[:, heard:], audio[:, heard:])
        progress = self.run.progress / self._together
        self._step("together", MEL_SCALE * mel + CONVERGENCE_SCALE * convergence,
                   learning_rate(progress, self.run.step, RATE_TOGETHER, WARM_UP, floor=0.1))  # fmt: skip
        self._average.update(self.run.step)
        return {
            "mel": mel.detach(),
            "convergence": convergence.detach(),
            "levels_used": levels.float().std((0, 2)).mean(),
        }

    def _learn_decoder(self) -> dict[str, Tensor]:
        assert self.levels is not None
        real, frames = self._crops(self._batch)
        levels = self.levels[frames].transpose(1, 2).float()
        latent = self.quantizer.latent(levels, self._noise(levels.shape))
        made = self._decoder()(latent)
        heard = LEAD_FRAMES * SAMPLES_PER_FRAME
        real, made = real[:, heard:], made[:, heard:]
        steps = self.run.step - self._frozen_at
        progress = (self.run.progress - self._together) / (1 - self._together)
        judged = self.discriminators.loss(real, made)
        self._step("discriminators", judged, learning_rate(progress, steps, RATE_DISCRIMINATORS, WARM_UP))
        mel, convergence = self.spectral(made, real)
        self.discriminators.requires_grad_(False)
        fooled, features = self.discriminators.teach(real, made)
        self.discriminators.requires_grad_(True)
        loss = MEL_SCALE * mel + CONVERGENCE_SCALE * convergence + fooled + FEATURE_SCALE * features
        self._step("decoder", loss, learning_rate(progress, steps, RATE_DECODER, WARM_UP))
        self._average.update(steps)
        return {"mel": mel.detach(), "convergence": convergence.detach(), "features": features.detach(),
                "fooled": fooled.detach(), "judged": judged.detach()}  # fmt: skip

    def _decoder(self) -> Any:
        """The decoder as a function of the latent; on CUDA a graph, since it is a thousand small kernels."""
        if not hasattr(self, "_run_decoder"):
            self._run_decoder: Any = Decoder(self.codec.audio_decoder)
            if self._graphs and self._device.type == "cuda":
                example = torch.randn(self._batch, 32, CROP_FRAMES + LEAD_FRAMES, device=self._device)
                try:
                    self._run_decoder = torch.cuda.make_graphed_callables(self._run_decoder, (example,))
                except RuntimeError as error:
                    print(f"the decoder runs without a CUDA graph: {error}", flush=True)
                    self._run_decoder = Decoder(self.codec.audio_decoder)
        return self._run_decoder

    def _step(self, name: str, loss: Tensor, rate: float) -> None:
        optimizer = self._optimizers[name]
        set_rate(optimizer, rate)
        # Gradients stay in their memory: a CUDA graph writes to where they were.
        optimizer.zero_grad(set_to_none=not self._graphs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], CLIP)
        optimizer.step()

    @torch.no_grad()
    def measure(self) -> None:
        """Logs the distance of held-out speech from its round trip, and writes some of it to listen to."""
        self._average.swap()
        searching = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = False  # every line is of its own length
        audio = on_device(self.held_out, self._device)
        levels = encode_stage(self.codec, self.quantizer, audio)
        distances = []
        for index in range(len(self.held_out)):
            begin, end = self.held_out.begins[index : index + 2]
            latent = self.quantizer.latent(levels[begin:end].T[None].float())
            made = decode(self.codec.audio_decoder, latent)
            real = audio[begin:end].flatten()[None].float() / 32768
            distances.append(float(self.spectral(made, real)[0]))
            if index < SAMPLES:
                write_wave(self.run.folder / f"round_trip_{index}.wav", made[0])
                write_wave(self.run.folder / f"original_{index}.wav", real[0])
        self._average.swap()
        torch.backends.cudnn.benchmark = searching
        used = torch.tensor([len(column.unique()) for column in self.quantizer.codes(levels.long().T[None])[0]])
        self.run.log(held_out_mel=float(np.mean(distances)), codes_used=float(used.float().mean()))

    def export(self) -> None:
        """Writes `codec.nemo` in half precision, the decoder's weights averaged."""
        self._average.swap()
        pack(self.codec, self.run.folder / CODEC_FILE)
        self._average.swap()


def on_device(stage: Stage, device: torch.device) -> Tensor:
    """Returns a stage's audio, (frames, 1024) int16."""
    return torch.from_numpy(stage.audio).view(-1, SAMPLES_PER_FRAME).to(device)


def save_codes(path: Path, stage: Stage, levels: Tensor, quantizer: Quantizer) -> None:
    """Writes the codes of a stage beside its texts, speakers and lines' beginnings, all at once.

    Args:
        path: To write.
        stage: What was encoded.
        levels: Of its frames, (frames, 32).
        quantizer: That made them.
    """
    codes = quantizer.codes(levels.long().T[None])[0].T.to(torch.int16).cpu().numpy()
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, codes=codes, begins=stage.begins, speakers=stage.speakers, texts=np.array(stage.texts))
    partial.replace(path)


def pack(model: Any, path: Path) -> None:
    """Saves a NeMo model with its parameters in half precision; NeMo restores them into single precision."""
    from triton_voice.checkpoints.pack import repack

    kept = {name: own.data for name, own in model.named_parameters()}
    for own in model.parameters():
        own.data = own.data.half()
    partial = path.with_name(f"{path.stem}.partial.nemo")  # whoever reads meanwhile finds the one before
    model.save_to(str(partial))
    for name, own in model.named_parameters():
        own.data = kept[name]
    repack(partial, compress=True).replace(path)


def write_wave(path: Path, audio: Tensor) -> None:
    """Writes samples in [-1, 1] as 16-bit mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((audio.float().clamp(-1, 1) * 32767).round().to(torch.int16).cpu().numpy().tobytes())


def held_out_stage(folder: Path, count: int, workers: int) -> Stage:
    """Speaks replies that are never trained on, each by the next speaker."""
    texts = [spoken(text) for text in world.replies("held_out", count)]
    return cast.perform([(index % len(cast.CAST), text) for index, text in enumerate(texts)], folder, workers)


def main(
    out: Annotated[Path, typer.Option(help="Folder for state, log, samples, codes.npz and codec.nemo.")],
    minutes: Annotated[float, typer.Option(help="Budget in minutes of training; 0 for none.")] = 0.0,
    steps: Annotated[int, typer.Option(help="Budget in steps, which makes it repeatable; 0 for none.")] = 0,
    replies: Annotated[int, typer.Option(help="Distinct replies to speak.")] = 4000,
    batch: Annotated[int, typer.Option(help="Crops a step.")] = 32,
    together: Annotated[float, typer.Option(help="Part of the budget before the encoder is frozen.")] = 0.35,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that speak; 0 for one on each core.")] = 0,
    seed: int = 0,
    graphs: Annotated[bool, typer.Option(help="Run the decoder as a CUDA graph.")] = True,
    start: Annotated[
        Path | None, typer.Option(help="Folder with codec.nemo and codes.npz of an earlier training to begin with.")
    ] = None,
    decoder_channels: Annotated[int, typer.Option(help="Of the decoder's first layer.")] = 256,
) -> None:
    """Train the codec of Magpie-tiny, or go on where it was interrupted."""
    import logging

    from triton_voice.checkpoints.magpie import SHAPES

    logging.getLogger("nemo_logger").setLevel(logging.ERROR)
    shape = replace(SHAPES["trained"], codec_decoder_channels=decoder_channels)
    try:
        run = Run(out, "codec", steps, minutes)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    stage = cast.perform(cast.cast_script(cast.script(replies, seed), seed), out / "speech", workers)
    held_out = held_out_stage(out / "held_out", HELD_OUT, workers)
    training = CodecTraining(
        shape, stage, held_out, run, pick_device(device, equal_shapes=True), batch, together, seed, graphs, start
    )
    run.restart_clock()
    training.train()


if __name__ == "__main__":
    typer.run(main)
