"""Restores a Magpie checkpoint with its codec, quietly, and refuses what this engine cannot serve."""

from __future__ import annotations

import contextlib
import logging as python_logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from magpie_engine.catalog import Catalog, name_voices
from magpie_engine.errors import CheckpointError
from magpie_engine.settings import EngineSettings

if TYPE_CHECKING:
    from nemo.collections.tts.models.magpietts import MagpieTTSModel

#: Positions of the decoder that are not speech frames: the begin-of-speech step.
BOS_POSITIONS = 1
#: Where Debian and Ubuntu put a dictionary for pyopenjtalk, and their package; else it fetches one.
JAPANESE_DICTIONARY = Path("/var/lib/mecab/dic/open-jtalk/naist-jdic")
JAPANESE_PACKAGE = "open-jtalk-mecab-naist-jdic"
#: Texts that show at load whether a language's tokenizer works, where a letter would not.
SAMPLES = {"ja": "はい", "zh": "你好"}


def restore(settings: EngineSettings) -> MagpieTTSModel:
    """Restores the model in evaluation mode on the chosen device.

    Raises:
        CheckpointError: Magpie or its codec cannot be found or read, or the variant is not supported.
    """
    if JAPANESE_DICTIONARY.is_dir():  # read when pyopenjtalk is imported, which a Japanese tokenizer does
        os.environ.setdefault("OPEN_JTALK_DICT_DIR", str(JAPANESE_DICTIONARY))
    device = pick_device(settings.device)
    with quiet_nemo():
        from nemo.collections.tts.models.magpietts import MagpieTTSModel

        source = _Source(settings.checkpoint, "MAGPIE_CHECKPOINT")
        config = source.restore(MagpieTTSModel, return_config=True)
        if settings.codec:
            config.codecmodel_path = settings.codec
        codec = _Source(config.codecmodel_path, "MAGPIE_CODEC")
        try:
            with _byt5_at_hand(config, settings.byt5):
                model = source.restore(MagpieTTSModel, override_config_path=config, map_location=device)
        except CheckpointError as error:
            # The codec is restored inside the model's constructor.
            raise CheckpointError(f"{error} (its codec is {codec.name!r}, which MAGPIE_CODEC replaces)") from error
        if not isinstance(model, MagpieTTSModel):
            raise CheckpointError(
                f"MAGPIE_CHECKPOINT names {source.name!r}, which is a {type(model).__name__}, not Magpie"
            )
    check_supported(model)
    model = model.eval().to(device, getattr(torch, settings.precision)).requires_grad_(False)
    model._codec_model.float()  # small beside the rest, and heard at once
    return model


class _Source:
    """A `.nemo` file or a hub name, and the setting that names it."""

    def __init__(self, name: str, setting: str) -> None:
        self.name = name
        self._setting = setting
        looks_like_path = name.endswith(".nemo") or name.startswith((".", "/", "~"))
        self._path = Path(name).expanduser() if looks_like_path or Path(name).exists() else None
        if self._path is not None and not self._path.is_file():
            raise CheckpointError(f"{setting} names {name!r}, but there is no such file")

    def restore(self, kind: type, **options: Any) -> Any:
        """Restores the model, or with `return_config` its configuration only."""
        try:
            if self._path is not None:
                return kind.restore_from(str(self._path), **options)  # type: ignore[attr-defined]
            return kind.from_pretrained(self.name, **options)  # type: ignore[attr-defined]
        except Exception as error:  # NeMo, tarfile, torch and the hub client each have their own kinds
            kind_of_name = "file" if self._path is not None else "hub name"
            raise CheckpointError(
                f"cannot restore the {kind_of_name} {self.name!r} of {self._setting}: {type(error).__name__}: {error}"
            ) from error


@contextlib.contextmanager
def _byt5_at_hand(config: Any, folder: str) -> Iterator[None]:
    """Has a checkpoint take its ByT5 tokenizers from a folder instead of the hub.

    ByT5's tokens are bytes: what the hub holds of `google/byt5-small`'s tokenizer are its class and default options.

    Args:
        config: The checkpoint's, changed.
        folder: Where the tokenizer is; empty makes one for the while.

    Raises:
        CheckpointError: There is no such folder.
    """
    wanting = [
        tokenizer
        for tokenizer in config.get("text_tokenizers", {}).values()
        if tokenizer.get("_target_") in ("AutoTokenizer", "T5Tokenizer")
        and "byt5" in tokenizer.pretrained_model
        and not Path(tokenizer.pretrained_model).is_dir()
    ]
    if folder and not Path(folder).expanduser().is_dir():
        raise CheckpointError(f"MAGPIE_BYT5 names {folder!r}, but there is no such folder")
    with tempfile.TemporaryDirectory() as scratch:
        if wanting and not folder:
            from transformers import ByT5Tokenizer

            ByT5Tokenizer().save_pretrained(scratch)
        for tokenizer in wanting:
            tokenizer._target_ = "AutoTokenizer"
            tokenizer.pretrained_model = str(Path(folder).expanduser()) if folder else scratch
        yield


def pick_device(name: str) -> torch.device:
    """Turns the setting MAGPIE_DEVICE into a device.

    Raises:
        CheckpointError: CUDA is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise CheckpointError("MAGPIE_DEVICE is cuda, but torch sees no CUDA device; use auto or cpu")
    return torch.device(name)


def check_supported(model: MagpieTTSModel) -> None:
    """Refuses checkpoint variants that the engine would get wrong.

    Raises:
        CheckpointError: Names the first property of the checkpoint that is not supported.
    """
    config = model.cfg
    decoder = model.decoder
    refusals = {
        f"model_type {model.model_type!r} (only 'decoder_ce')": model.model_type != "decoder_ce",
        "no baked speakers (context audio or text is not supported)": not model.has_baked_context_embedding,
        f"local_transformer_type {config.get('local_transformer_type', 'none')!r} (only 'autoregressive')": (
            config.get("local_transformer_type", "none").lower() not in ("ar", "autoregressive")
        ),
        "mixture of experts in the decoder": decoder.use_moe,
        "decoder kernel_size other than 1": any(layer.pos_ff.proj.kernel_size != 1 for layer in decoder.layers),
        "decoder without learnable positions": not decoder.use_learnable_pos_emb,
    }
    for reason, refused in refusals.items():
        if refused:
            raise CheckpointError(f"this Magpie checkpoint is of a kind that is not supported: {reason}")


def read_catalog(model: MagpieTTSModel, settings: EngineSettings) -> Catalog:
    """Lists what a restored checkpoint offers.

    Raises:
        CheckpointError: MAGPIE_VOICES does not fit the checkpoint, no language has a tokenizer, or one's does not work
            (Japanese needs a dictionary: of the system's package, of OPEN_JTALK_DICT_DIR, or one that pyopenjtalk
            fetches when it is first used).
    """
    from nemo.collections.tts.parts.utils.tts_dataset_utils import LANGUAGE_TOKENIZER_MAP

    tokenizers = set(model.tokenizer.tokenizer_names)
    languages = {
        language: next(name for name in candidates if name in tokenizers)
        for language, candidates in LANGUAGE_TOKENIZER_MAP.items()
        if tokenizers.intersection(candidates)
    }
    if not languages:
        raise CheckpointError(f"no known language among the checkpoint's tokenizers: {', '.join(sorted(tokenizers))}")
    for language, name in languages.items():
        try:
            model.tokenizer.encode(text=SAMPLES.get(language, "a"), tokenizer_name=name)
        except Exception as error:  # each tokenizer has its own kinds
            hint = ""
            if language == "ja":
                hint = (
                    f"; install the system's package {JAPANESE_PACKAGE}, or let OPEN_JTALK_DICT_DIR name a dictionary"
                )
            raise CheckpointError(
                f"the checkpoint's tokenizer {name!r} for the language {language!r} does not work here: "
                f"{type(error).__name__}: {error}{hint}"
            ) from error
    try:
        voices = name_voices(model.num_baked_speakers, settings.voices)
    except ValueError as error:
        raise CheckpointError(f"MAGPIE_VOICES does not fit the checkpoint: {error}") from error

    inference = model.inference_parameters
    stacking = model.frame_stacking_factor
    context = int(model.baked_context_embedding_len.max())
    positions = model.decoder.position_embeddings.num_embeddings - context - BOS_POSITIONS
    return Catalog(
        voices=voices,
        languages=languages,
        sample_rate=int(model.output_sample_rate),
        samples_per_frame=int(model.codec_model_samples_per_frame),
        max_text_tokens=model.encoder.position_embeddings.num_embeddings,
        max_frames=min(inference.max_decoder_steps // stacking, positions) * stacking,
        temperature=inference.temperature,
        top_k=inference.topk,
        cfg_scale=inference.cfg_scale,
    )


@contextlib.contextmanager
def quiet_nemo() -> Iterator[None]:
    """Keeps NeMo and its libraries from writing to the server's log: what matters comes back as exceptions.

    NeMo's own logger stays at ERROR afterwards, since its tokenizers warn about every unknown character. Process-wide,
    so only for loading.
    """
    python_logging.getLogger("nv_one_logger").setLevel(python_logging.CRITICAL)
    with (
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        from nemo.utils import logging

        logging.set_verbosity(logging.ERROR)
        yield
