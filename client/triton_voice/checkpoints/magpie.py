"""Random-weight Magpie TTS and NanoCodec checkpoints (`.nemo`) of the real NeMo classes, for tests and measurements.

Classes and configuration keys are those of `nvidia/magpie_tts_multilingual_357m` (baked speakers, autoregressive local
transformer, eight codebooks of 2016 FSQ codes at 21.53 frames per second) and of its codec. The weights are random, so
what they say is noise, and **how long they say it means nothing**: random weights cannot know when a text is over, so
the end token is out of reach and every utterance runs to `inference_parameters.max_decoder_steps`: about three seconds
for "tiny", 23 seconds (as the real model's cap) for "full". `max_seconds` of a request shortens it.

Five speakers are baked in, at the indices of the public checkpoint: John 0, Sofia 1, Aria 2, Jason 3, Leo 4. A `.nemo`
stores no names: the serving engine owns the list (`magpie_engine/catalog.py`).

The `.nemo` names its codec by the public hub name, as the real one does, so whoever restores it must say where the
codec is (`MAGPIE_CODEC`).
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_voice.checkpoints.pack import repack

if TYPE_CHECKING:
    import torch
    from nemo.collections.tts.models import AudioCodecModel
    from nemo.collections.tts.models.magpietts import MagpieTTSModel

MAGPIE_FILE = "magpie.nemo"
CODEC_FILE = "codec.nemo"
#: What `codecmodel_path` says in the public checkpoint.
CODEC_HUB_NAME = "nvidia/nemo-nano-codec-22khz-1.89kbps-21.5fps"

SPEAKERS = ("John", "Sofia", "Aria", "Jason", "Leo")
SPEAKER_FRAMES = 110
SAMPLE_RATE = 22050
SAMPLES_PER_FRAME = 1024
#: Root mean square of the random codec's output, full scale 1: clearly audible and far from clipping.
TARGET_RMS = 0.1
#: Frames of random codes that the codec's levels are set by.
CALIBRATION_FRAMES = 64
#: Bias of a token that is not to be drawn; logits of the random weights stay within a few units of zero.
NEVER = -100.0

_CODEC = "nemo.collections.tts.modules.audio_codec_modules."
_TOKENIZERS = "nemo.collections.common.tokenizers.text_to_speech.tts_tokenizers."

_WORDS = """
hello world this is a test of the streaming speech engine please turn on lights in kitchen and play some music what time
it new york how weather today i would like to book table for two at seven evening could you repeat that more slowly did
not hear yes no maybe one three four five six eight nine ten thank very much goodbye have nice day the quick brown fox
jumps over lazy dog
"""
_PHONEMES = """
ɑ æ ʌ ɔ aʊ aɪ b tʃ d ð ɛ ɝ eɪ f ɡ h ɪ i dʒ k l m n ŋ oʊ ɔɪ p ɹ s ʃ t θ ʊ u v w j z ʒ
"""  # noqa: RUF001
_STRESS = "\u02c8"


@dataclass(frozen=True)
class Gains:
    """Factors on freshly initialised weights.

    Untouched, the network is nearly blind: text, speaker and history hardly move its output, every text gives the same
    codes, and a test that compares engines compares nothing.
    """

    text_query: float = 12.0
    text_key_value: float = 6.0
    text_out: float = 30.0
    history_qkv: float = 5.0
    history_out: float = 10.0
    local_in: float = 4.0


@dataclass(frozen=True)
class Shape:
    """What decides the size of the two models; names as in NeMo's configurations.

    Attributes:
        width: `embedding_dim` and `d_model` of encoder and decoder.
        ffn: `d_ffn`.
        heads: Self-attention heads.
        cross_head: Width of the single cross-attention head.
        encoder_layers: Layers of the text encoder.
        decoder_layers: Layers of the decoder.
        local_width: Width of the local transformer.
        max_text: Longest text in tokens (encoder positions).
        max_positions: Longest speaker context plus speech, in decoder positions.
        max_steps: `max_decoder_steps`: the length at which an utterance is cut, in frames.
        alignment_layers: `estimate_alignment_from_layers`.
        prior_layers: `apply_prior_to_layers`.
        codec_encoder_channels: `base_channels` of the codec's encoder.
        codec_decoder_channels: `base_channels` of the codec's decoder; at least 64 (half_snake needs two channels at
            the last of five stages).
        gains: Factors on the weights, None for none.
        stacking: `frame_stacking_factor`: frames that the decoder predicts in a step.
        local_layers: Layers of the local transformer.
        languages: Languages beside English and French, by letters: of `LETTER_TOKENIZERS`.
        english_only: Without French, too.
        speaker_frames: Length of the speaker context.
        spectral_encoder: The codec's encoder hears magnitudes of the spectrum instead of samples: small, quick to train
            and blind to phase. Speech is decoded alike.
    """

    width: int
    ffn: int
    heads: int
    cross_head: int
    encoder_layers: int
    decoder_layers: int
    local_width: int
    max_text: int
    max_positions: int
    max_steps: int
    alignment_layers: tuple[int, ...]
    prior_layers: tuple[int, ...]
    codec_encoder_channels: int
    codec_decoder_channels: int
    gains: Gains | None
    stacking: int = 1
    local_layers: int = 1
    languages: tuple[str, ...] = ()
    english_only: bool = False
    speaker_frames: int = SPEAKER_FRAMES
    spectral_encoder: bool = False


#: Tokenizers that need no file, by language: NeMo's name for it, and the class.
LETTER_TOKENIZERS = {
    "de": ("german", "GermanCharsTokenizer"),
    "es": ("spanish", "SpanishCharsTokenizer"),
    "it": ("italian", "ItalianCharsTokenizer"),
    "vi": ("vietnamese", "VietnameseCharsTokenizer"),
    "hi": ("hindi", "HindiCharsTokenizer"),
}

SHAPES = {
    "tiny": Shape(32, 64, 4, 32, 2, 3, 16, 512, 256, 64, (1, 2), (1, 2), 4, 64, Gains()),
    "full": Shape(768, 3072, 12, 128, 6, 12, 256, 2048, 2048, 500, (3, 4, 5, 6), (3, 4, 5, 6, 7, 8, 9), 48, 864, None),
    # Of the trained checkpoints (training/): small enough for two processor cores, large enough to speak.
    "trained": Shape(
        192,
        768,
        4,
        64,
        3,
        5,
        96,
        256,
        384,
        360,
        (1, 2, 3),
        (1, 2, 3),
        96,
        256,
        None,
        english_only=True,
        speaker_frames=8,
        spectral_encoder=True,
    ),
}


def make(out: Path, size: str, seed: int = 0, **changes: Any) -> tuple[Path, Path]:
    """Builds both checkpoints with random weights.

    Args:
        out: Folder for the two files; made if missing.
        size: "tiny" (about 8 MB and 3 MB) or "full" (the public shapes, about 1.2 GB and 0.4 GB).
        seed: Of the weights; the same seed gives the same weights and, with the same library versions, the same bytes.
        **changes: Fields of `Shape` that differ from those of the size.

    Returns:
        Paths of `magpie.nemo` and `codec.nemo` inside `out`.

    Raises:
        ValueError: `size` is not known.
    """
    if size not in SHAPES:
        raise ValueError(f"unknown size {size!r} of a Magpie checkpoint; choose one of {', '.join(SHAPES)}")
    shape = replace(SHAPES[size], **changes)
    out.mkdir(parents=True, exist_ok=True)
    magpie_path, codec_path = out / MAGPIE_FILE, out / CODEC_FILE
    import torch

    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(seed)
        build_codec(shape).save_to(str(codec_path))
        model = build_magpie(shape, codec_path, Path(scratch))
        model.cfg.codecmodel_path = CODEC_HUB_NAME
        model.save_to(str(magpie_path))
    repack(codec_path)
    repack(magpie_path)
    return magpie_path, codec_path


def build_codec(shape: Shape) -> AudioCodecModel:
    """Builds the codec with its output scaled to `TARGET_RMS`, on the CPU, in evaluation mode."""
    import torch
    from nemo.collections.tts.models import AudioCodecModel

    codec = AudioCodecModel(codec_config(shape)).eval()
    decoder = codec.audio_decoder
    codes = torch.randint(0, codec.codebook_size, (1, codec.num_codebooks, CALIBRATION_FRAMES))
    with torch.no_grad():
        # Freshly initialised biases drown what the codes say: the output would be a constant.
        for name, parameter in decoder.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        stages = [(decoder.pre_conv, 1.0), *((layer, 1.0) for layer in decoder.up_sample_conv_layers)]
        for stage, level in [*stages, (decoder.post_conv, TARGET_RMS)]:
            _set_level(codec, codes, stage, level)
        audio, _ = codec.decode(tokens=codes, tokens_len=torch.tensor([CALIBRATION_FRAMES]))
        decoder.post_conv.conv.bias.sub_(audio.mean())
    return codec


def build_magpie(
    shape: Shape, codec: Path, scratch: Path, lexicon: Mapping[str, str] | None = None, *, can_end: bool = False
) -> MagpieTTSModel:
    """Builds the acoustic model with baked speakers, on the CPU, in evaluation mode.

    Args:
        shape: Sizes and gains.
        codec: The codec's `.nemo`; the constructor reads it.
        scratch: Folder for the pronunciation files, which `save_to` packs into the `.nemo`.
        lexicon: Words with their IPA; None for a small one of random sounds.
        can_end: Leaves the end token in reach, for a model that will be trained.
    """
    from nemo.collections.tts.models.magpietts import MagpieTTSModel

    model = MagpieTTSModel(magpie_config(shape, codec, scratch, lexicon)).eval()
    bake_speakers(model, shape.speaker_frames)
    if not can_end:
        _never_end(model)
    if shape.gains is not None:
        _amplify(model, shape.gains)
    return model


def _set_level(codec: AudioCodecModel, codes: torch.Tensor, stage: torch.nn.Module, level: float) -> None:
    """Scales a weight-normalised convolution so that its output has the standard deviation `level`."""
    import torch

    measured: list[torch.Tensor] = []
    hook = stage.register_forward_hook(lambda module, inputs, output: measured.append(output.std()))
    codec.decode(tokens=codes, tokens_len=torch.tensor([codes.shape[-1]]))
    hook.remove()
    for name, parameter in stage.named_parameters():
        if name.endswith(("original0", "weight_g")):  # the gain, by torch's newer and older weight normalisation
            parameter.mul_(level / measured[0])


def codec_config(shape: Shape) -> Any:
    """Returns NeMo's configuration of the codec."""
    from omegaconf import OmegaConf

    rates = (8, 8, 4, 2, 2)
    return OmegaConf.create(
        {
            "sample_rate": SAMPLE_RATE,
            "samples_per_frame": SAMPLES_PER_FRAME,
            "max_epochs": 1,
            "steps_per_epoch": 1,
            "mel_loss_l1_scale": 1.0,
            "mel_loss_l2_scale": 0.0,
            "stft_loss_scale": 20.0,
            "time_domain_loss_scale": 0.0,
            "commit_loss_scale": 0.0,
            "disc_updates_per_period": 1,
            "disc_update_period": 2,
            "loss_resolutions": [[512, 128, 512]],
            "mel_loss_dims": [80],
            "mel_loss_log_guard": 1.0,
            "stft_loss_log_guard": 1.0,
            "feature_loss_type": "absolute",
            "audio_encoder": _spectral_encoder(shape)
            if shape.spectral_encoder
            else {
                "_target_": _CODEC + "HiFiGANEncoder",
                "down_sample_rates": list(reversed(rates)),
                "encoded_dim": 32,
                "base_channels": shape.codec_encoder_channels,
                "activation": "lrelu",
                "resblock_dilation_sizes": [1],
            },
            "audio_decoder": {
                "_target_": _CODEC + "CausalHiFiGANDecoder",
                "up_sample_rates": list(rates),
                "input_dim": 32,
                "base_channels": shape.codec_decoder_channels,
                "activation": "half_snake",
                "output_activation": "clamp",
            },
            "vector_quantizer": {
                "_target_": _CODEC + "GroupFiniteScalarQuantizer",
                "num_groups": 8,
                "num_levels_per_group": [8, 7, 6, 6],
            },
            "generator_loss": {"_target_": "nemo.collections.tts.losses.audio_codec_loss.GeneratorSquaredLoss"},
            "discriminator_loss": {"_target_": "nemo.collections.tts.losses.audio_codec_loss.DiscriminatorSquaredLoss"},
            "optim": {"_target_": "torch.optim.Adam", "lr": 2e-4, "betas": [0.8, 0.99]},
        }
    )


def _spectral_encoder(shape: Shape) -> dict[str, Any]:
    """A quarter of a frame of hop, halved twice."""
    hop, channels = SAMPLES_PER_FRAME // 4, shape.codec_encoder_channels
    return {
        "_target_": _CODEC + "MultiResolutionSTFTEncoder",
        "out_dim": 32,
        "resolutions": [[4 * hop, hop, 4 * hop]],
        "resolution_filter_list": [channels],
        "down_sample_filter_list": [channels * 4 // 3, channels * 5 // 3],
        "down_sample_rate_list": [2, 2],
    }


def magpie_config(shape: Shape, codec: Path, scratch: Path, lexicon: Mapping[str, str] | None = None) -> Any:
    """Returns NeMo's configuration of the acoustic model, and writes the pronunciation files that it names."""
    from omegaconf import OmegaConf

    encoder = {
        "n_layers": shape.encoder_layers,
        "d_model": shape.width,
        "d_ffn": shape.ffn,
        "sa_n_heads": shape.heads,
        "kernel_size": 3,
        "p_dropout": 0.1,
        "p_dropout_out": 0.0,
        "has_xattn": False,
        "is_causal": True,
        "apply_norm_out": True,
        "max_length_causal_mask": shape.max_text,
        "use_learnable_pos_emb": True,
    }
    decoder = encoder | {
        "n_layers": shape.decoder_layers,
        "kernel_size": 1,
        "has_xattn": True,
        "xa_d_head": shape.cross_head,
        "xa_d_memory": shape.width,
        "xa_n_heads": 1,
        "apply_norm_to_cond": True,
        "max_length_causal_mask": shape.max_positions,
        "make_prior_window_strict": True,
    }
    # With frame stacking, upstream refuses the training-time losses of the alignment; unstacked, it has no such key.
    stacked = {"frame_stacking_factor": shape.stacking, "alignment_loss_scale": 0.0, "prior_scaling_factor": None}
    return OmegaConf.create(
        {
            "model_type": "decoder_ce",
            "use_text_conditioning_encoder": False,
            "text_conditioning_tokenizer_name": "english_phoneme",
            "context_duration_min": 5.0,
            "context_duration_max": 5.0,
            "load_cached_codes_if_available": True,
            "prior_scaling_factor": 0.5,
            "prior_end_step": 0,
            "prior_scaledown_start_step": 0,
            "indefinite_prior_prob": 0.0,
            "alignment_loss_scale": 0.002,
            "embedding_dim": shape.width,
            "codecmodel_path": str(codec),
            "max_epochs": 1,
            "steps_per_epoch": 1,
            "cfg_unconditional_prob": 0.1,
            "use_alignment_encoder": False,
            "local_transformer_type": "autoregressive",
            "local_transformer_loss_scale": 1.0,
            "local_transformer_n_layers": shape.local_layers,
            "local_transformer_n_heads": 1,
            "local_transformer_hidden_dim": shape.local_width,
            "text_tokenizers": _tokenizers(scratch, shape, lexicon),
            "encoder": encoder,
            # Baked speakers replace the context encoder, whose weights are then left out of the `.nemo`.
            "context_encoder": encoder | {"n_layers": 1, "is_causal": False},
            "decoder": decoder,
            "use_kv_cache_for_inference": False,
            "inference_parameters": {
                "max_decoder_steps": shape.max_steps,
                "temperature": 0.6,
                "topk": 80,
                "cfg_scale": 2.5,
                "apply_attention_prior": True,
                "attention_prior_epsilon": 0.1,
                "attention_prior_lookahead_window": 5,
                "estimate_alignment_from_layers": list(shape.alignment_layers),
                "apply_prior_to_layers": list(shape.prior_layers),
                "start_prior_after_n_audio_steps": 0,
                "use_LT_kv_cache": True,
                "ignore_finished_sentence_tracking": True,
                "eos_detection_method": "argmax_or_multinomial_any",
                "min_generated_frames": 4,
            },
            "optim": {"_target_": "torch.optim.AdamW", "lr": 2e-4},
        }
        | (stacked if shape.stacking > 1 else {})
    )


def _tokenizers(scratch: Path, shape: Shape, lexicon: Mapping[str, str] | None) -> dict[str, Any]:
    """English phonemes with letters for every word outside the dictionary, and other languages' letters."""
    dictionary, heteronyms = scratch / "ipa_dictionary.txt", scratch / "heteronyms.txt"
    entries = _random_lexicon() if lexicon is None else lexicon
    dictionary.write_text("".join(f"{word.upper()}  {ipa}\n" for word, ipa in entries.items()), encoding="utf-8")
    heteronyms.write_text("read\nlive\n", encoding="utf-8")
    # The public checkpoint's French is ByT5, fetched from the hub when the model is built; letters need no file.
    french = {} if shape.english_only else {"french_chartokenizer": {"_target_": _TOKENIZERS + "FrenchCharsTokenizer"}}
    return {
        "english_phoneme": {
            "_target_": _TOKENIZERS + "IPATokenizer",
            "punct": True,
            "apostrophe": True,
            "pad_with_space": False,
            "g2p": {
                "_target_": "nemo.collections.tts.g2p.models.i18n_ipa.IpaG2p",
                "phoneme_dict": str(dictionary),
                "heteronyms": str(heteronyms),
                "phoneme_probability": 1.0,
                "ignore_ambiguous_words": False,
                "use_chars": True,
                "use_stresses": True,
            },
        },
        **french,
        **{
            name: {"_target_": _TOKENIZERS + tokenizer}
            for name, tokenizer in (LETTER_TOKENIZERS[language] for language in shape.languages)
        },
    }


def _random_lexicon() -> dict[str, str]:
    dice, phonemes = random.Random(0), _PHONEMES.split()
    lexicon = {}
    for index, word in enumerate(dict.fromkeys(_WORDS.split())):
        sounds = [dice.choice(phonemes) for _ in range(max(2, len(word) - 1))]
        sounds[0] = phonemes[index % len(phonemes)]
        lexicon[word] = f"{_STRESS}{''.join(sounds)}"
    return lexicon


def bake_speakers(model: MagpieTTSModel, frames: int = SPEAKER_FRAMES) -> None:
    """Gives the model what the public checkpoint has: fixed context embeddings instead of context audio."""
    import torch

    width = model.cfg.embedding_dim
    table = torch.nn.Embedding(len(SPEAKERS), frames * width)
    torch.nn.init.normal_(table.weight)
    model.baked_context_embedding = table.requires_grad_(False)
    model._baked_embedding_T = torch.tensor(frames)
    model._baked_embedding_D = torch.tensor(width)
    model.baked_context_embedding_len = torch.full((len(SPEAKERS),), frames, dtype=torch.long)


def _never_end(model: MagpieTTSModel) -> None:
    """Takes the end-of-speech token out of reach: drawn by chance, it would make lengths a lottery."""
    import torch

    end = model.audio_eos_id
    with torch.no_grad():
        model.final_proj.bias.view(-1, model.num_all_tokens_per_codebook)[:, end] = NEVER
        for head in model.local_transformer_out_projections:
            head.bias[end] = NEVER


def _amplify(model: MagpieTTSModel, gains: Gains) -> None:
    import torch

    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.cross_attention.q_net.weight.mul_(gains.text_query)
            layer.cross_attention.kv_net.weight.mul_(gains.text_key_value)
            layer.cross_attention.o_net.weight.mul_(gains.text_out)
            layer.self_attention.qkv_net.weight.mul_(gains.history_qkv)
            layer.self_attention.o_net.weight.mul_(gains.history_out)
        model.local_transformer_in_projection.weight.mul_(gains.local_in)
