"""What a restored checkpoint offers to clients: voices, languages, limits and default sampling."""

from __future__ import annotations

from dataclasses import dataclass

#: Speakers of `nvidia/magpie_tts_multilingual_357m`, by the index of their baked embedding. The `.nemo` stores no
#: names; the setting MAGPIE_VOICES replaces this list for other checkpoints.
PUBLIC_VOICES = ("John", "Sofia", "Aria", "Jason", "Leo")


@dataclass(frozen=True)
class Catalog:
    """Facts of one checkpoint, readable from any thread.

    Attributes:
        voices: Lower-case voice name to speaker index.
        languages: Language code to the checkpoint's tokenizer name.
        sample_rate: Of the audio, in Hz.
        samples_per_frame: Audio samples per codec frame.
        max_text_tokens: Longest text that the encoder takes, end token included.
        max_frames: Longest utterance in codec frames.
        temperature: Default of requests that name none.
        top_k: Likewise.
        cfg_scale: Likewise, of classifier-free guidance.
    """

    voices: dict[str, int]
    languages: dict[str, str]
    sample_rate: int
    samples_per_frame: int
    max_text_tokens: int
    max_frames: int
    temperature: float
    top_k: int
    cfg_scale: float

    @property
    def frames_per_second(self) -> float:
        """Codec frames per second of audio: 21.53 for NanoCodec at 22.05 kHz."""
        return self.sample_rate / self.samples_per_frame


def name_voices(speakers: int, names: str = "") -> dict[str, int]:
    """Names the baked speakers.

    Args:
        speakers: Number of baked speakers in the checkpoint.
        names: Comma-separated names in index order, or empty.

    Returns:
        Lower-case name to index. Without `names`, the public checkpoint's names when the count matches, else
        "speaker_0", "speaker_1", ...

    Raises:
        ValueError: The number of names differs from the number of speakers, or a name comes twice.
    """
    chosen = [name.strip().lower() for name in names.split(",") if name.strip()]
    if not chosen:
        public = [name.lower() for name in PUBLIC_VOICES]
        chosen = public if speakers == len(public) else [f"speaker_{index}" for index in range(speakers)]
    if len(chosen) != speakers or len(set(chosen)) != speakers:
        raise ValueError(f"{speakers} different names are needed, one for each baked speaker; got: {', '.join(chosen)}")
    return {name: index for index, name in enumerate(chosen)}
