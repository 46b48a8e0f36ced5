"""NeMo's own transcript of whole files, by the same checkpoint that the server streams with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triton_voice.audio import Samples, read_audio
from triton_voice.errors import InvalidInput
from triton_voice.evaluation.hearing import OnDone
from triton_voice.evaluation.sets import Recording

FRAME_MS = 80


class OfflineRecogniser:
    """A checkpoint in NeMo, without server and without streaming.

    Args:
        checkpoint: A `.nemo` file or hub name.

    Raises:
        InvalidInput: NeMo is not installed, or the checkpoint is not one that hears in one language.
    """

    def __init__(self, checkpoint: str):
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)  # before the import, which warns of its own telemetry
        try:
            from nemo.collections.asr.models import ASRModel
            from nemo.utils import logging as nemo_logging
        except ImportError as error:
            raise InvalidInput(f"the offline comparison needs NeMo in this environment: {error}") from error
        finally:
            logging.disable(disabled)
        nemo_logging.set_verbosity(nemo_logging.ERROR)
        is_file = Path(checkpoint).expanduser().exists()
        if not is_file and checkpoint.endswith(".nemo"):
            raise InvalidInput(f"there is no checkpoint at {checkpoint}")
        path = str(Path(checkpoint).expanduser())
        model = ASRModel.restore_from(path) if is_file else ASRModel.from_pretrained(checkpoint)
        if getattr(model, "concat", False):
            raise InvalidInput(f"{checkpoint} takes the language as a prompt; it has no offline comparison here")
        self._model: Any = model.eval()
        self._model.preprocessor.featurizer.dither = 0.0
        self._model.preprocessor.featurizer.pad_to = 0

    def transcribe(self, audio: Samples, latency_ms: int) -> str:
        """Returns the transcript of a whole file with the attention context of a lookahead.

        Args:
            audio: int16, shape (samples,), 16 kHz mono.
            latency_ms: The lookahead, 80 ms x (right context + 1).
        """
        import torch

        right = latency_ms // FRAME_MS - 1
        contexts = [context for context in self._model.encoder.att_context_size_all if int(context[1]) == right]
        if not contexts:
            raise InvalidInput(f"the checkpoint has no lookahead of {latency_ms} ms")
        self._model.encoder.set_default_att_context_size(list(contexts[0]))
        signal = torch.from_numpy(audio.astype(np.float32) / 32768.0)[None].to(self._model.device)
        length = torch.tensor([len(audio)], device=self._model.device)
        with torch.inference_mode():
            encoded, frames = self._model(input_signal=signal, input_signal_length=length)
            heard = self._model.decoding.rnnt_decoder_predictions_tensor(encoded, frames, return_hypotheses=True)
        return str(heard[0].text)

    def transcribe_all(self, recordings: Sequence[Recording], latency_ms: int, on_done: OnDone) -> list[str]:
        """Returns the transcripts of recordings, one after the other."""
        texts = []
        for recording in recordings:
            texts.append(self.transcribe(read_audio(recording.path), latency_ms))
            on_done()
        return texts
