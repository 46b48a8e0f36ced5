"""What the bot can be told: by flag of `triton-voice bot`, or by environment variable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from triton_voice.client import DEFAULT_URL

ENV_PREFIX = "TRITON_VOICE_BOT_"
LOCAL_HOSTS = ("localhost", "127.0.0.1")
TURN_ENV_PREFIX = "TRITON_VOICE_TURN_"
Names = Annotated[tuple[str, ...], NoDecode]
"""Several names; as a string, comma separated."""


class TurnTaking(BaseSettings):
    """When somebody's turn begins and ends. Each field is also the variable `TRITON_VOICE_TURN_<FIELD>`.

    The description of a field says why it has its value.
    """

    model_config = SettingsConfigDict(env_prefix=TURN_ENV_PREFIX, extra="ignore")

    vad_confidence: float = Field(
        default=0.7,
        gt=0,
        lt=1,
        description="Silero's probability from which a frame counts as voice, 0 to 1. Its authors' value; lower hears "
        "keyboards as speech.",
    )
    vad_min_volume: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Smoothed loudness (EBU R128 scaled to 0 to 1) below which nothing is voice. Keeps a television in "
        "the next room out.",
    )
    vad_start_s: float = Field(
        default=0.2,
        gt=0,
        description="Seconds of voice before speech has begun. Shorter takes clicks for speech; the recogniser gets "
        "the audio before it as well, so no sound is lost.",
    )
    vad_stop_s: float = Field(
        default=0.2,
        gt=0,
        description="Seconds of silence before Smart Turn is asked. Smart Turn v3 is trained on this pause, and it is "
        "part of every answer's latency.",
    )
    incomplete_timeout_s: float = Field(
        default=2.0,
        gt=0,
        description="Seconds of silence that end a turn which Smart Turn calls unfinished. Long enough to think of a "
        "word; Pipecat's 3 s feel like a dropped call.",
    )
    empty_timeout_s: float = Field(
        default=1.0,
        gt=0,
        description="Seconds after the end of a sound in which no word was recognised until the turn is dropped: a "
        "cough. Longer than the recogniser ever takes for its last word.",
    )
    watchdog_s: float = Field(
        default=5.0,
        gt=0,
        description="Seconds without any sign of life after which an open turn is closed, whatever else failed. Must "
        "be the longest of the limits.",
    )
    barge_in_words: int = Field(
        default=2,
        ge=1,
        description="Real words that interrupt the bot while the user still speaks. One interim word may be a misheard "
        "'mm-hm'; two are not. A finished utterance of one real word ('Paris?') interrupts too.",
    )
    command_words: Names = Field(
        default=("stop", "wait", "no", "hey", "quiet", "halt", "basta", "arrete", "arrête"),
        description="Words that interrupt by themselves, at once: nobody says them to encourage a speaker.",
    )
    backchannels: Names = Field(
        default=(
            "mm", "mmm", "mhm", "mm-hm", "mm-hmm", "mmhmm", "hm", "hmm", "uh", "uh-huh", "uhuh", "huh", "um", "ah",
            "aha", "oh", "er", "yeah", "yep", "yup", "yes", "ok", "okay", "right", "sure", "alright", "really", "wow",
            "cool", "nice", "good", "great", "exactly", "i see", "got it", "of course", "ja", "genau", "doch", "oui",
            "ouais", "sí", "si", "claro", "vale", "sì",
        ),
        description="Words that keep a speaker going. While the bot speaks, an utterance of nothing else is shown and "
        "forgotten.",
    )  # fmt: skip
    eager: bool = Field(
        default=True,
        description="Start the answer at the pause, with the words so far, before Smart Turn has decided; it is held "
        "back until then and dropped when the user goes on.",
    )

    @field_validator("command_words", "backchannels", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return tuple(name.strip().lower() for name in value.split(",")) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _ordered(self) -> TurnTaking:
        if self.watchdog_s <= max(self.incomplete_timeout_s, self.empty_timeout_s):
            raise ValueError("watchdog_s must be longer than incomplete_timeout_s and empty_timeout_s")
        return self


class BotSettings(BaseSettings):
    """How the bot runs. Each field is also the variable `TRITON_VOICE_BOT_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore")

    server: str = Field(default=DEFAULT_URL, description="`host:port` of Triton's gRPC endpoint.")
    host: str = Field(default="127.0.0.1", description="Address that the page is served on; 0.0.0.0 for the LAN.")
    port: int = Field(default=7860, ge=0, le=65535, description="Port of the page.")
    tls_cert: Path | None = Field(
        default=None, description="Certificate (PEM). Browsers give the microphone only to https or localhost."
    )
    tls_key: Path | None = Field(default=None, description="Its private key (PEM).")
    allowed_hosts: Names = Field(
        default=(),
        description="Names under which browsers may ask for the page, comma separated; '*' for any. Keeps pages of "
        "other sites from reaching the bot by a name of theirs. Default: localhost while served there, else any.",
    )
    token: str | None = Field(
        default=None,
        min_length=1,
        repr=False,
        description="Wanted from the page (`Authorization: Bearer ...`) to converse.",
    )
    max_conversations: int = Field(
        default=8, ge=1, description="Conversations at once; the next one is refused politely."
    )
    max_per_address: int = Field(
        default=4,
        ge=1,
        description="Conversations at once from one address, this machine's own apart.",
    )
    requests_per_minute: int = Field(
        default=60, ge=1, description="Offers and transcripts that one address may ask for, this machine's own apart."
    )
    voice: str = Field(default="aria", description="Voice that a conversation begins with.")
    voices: Names = Field(default=("aria", "jason", "john", "leo", "sofia"), description="Voices that the page offers.")
    language: str = Field(default="en", description="Language that a conversation begins with.")
    languages: Names = Field(
        default=("en",), description="Languages that the page offers: what recogniser and voice both know."
    )
    greeting: str | None = Field(default=None, description="Said first; empty for none. Default: the persona's.")
    apology: str | None = Field(
        default=None,
        description="Said when no answer comes in time; empty for none. Default: the persona's, by language.",
    )
    reply_tokens: int = Field(default=200, ge=1, description="Longest reply, in tokens of the language model.")
    answer_timeout_s: float = Field(
        default=20.0,
        gt=0,
        description="Seconds that a reply may take to begin, or to go on, before the bot says that it has none.",
    )
    temperature: float = Field(default=0.6, ge=0, le=2, description="Of the language model.")
    history: int = Field(
        default=40, ge=2, description="Messages that the language model is given; older ones are forgotten."
    )
    keep_minutes: float = Field(
        default=10.0, ge=0, description="How long an ended conversation can be taken up again, e.g. after a reload."
    )
    idle_minutes: float = Field(
        default=10.0, gt=0, description="Silence of both sides after which a conversation ends, so that others get in."
    )
    record: Path | None = Field(
        default=None, description="Folder for recordings: a stereo WAV each, user left, bot right. Tell people first."
    )
    stun: Names = Field(
        default=(), description="STUN or TURN URLs, comma separated. None are needed on one machine or one LAN."
    )
    turn_username: str | None = Field(default=None, description="User name for the TURN URLs of `stun`.")
    turn_password: str | None = Field(default=None, repr=False, description="Password for the TURN URLs of `stun`.")
    log_format: Literal["text", "json"] = Field(
        default="text", description="json: one object a line, with the conversation's id."
    )
    trace: str | None = Field(
        default=None,
        description="OTLP/HTTP URL that spans go to, e.g. http://localhost:4318/v1/traces. Needs the extra `tracing`.",
    )
    trace_content: bool = Field(default=False, description="Whether spans hold what is said. Tell people first.")
    notice: str | None = Field(default=None, description="A sentence that the page shows on top.")

    @field_validator("voices", "languages", "stun", "allowed_hosts", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names in the Host header that are answered."""
        return self.allowed_hosts or (LOCAL_HOSTS if self.host in LOCAL_HOSTS else ("*",))

    @model_validator(mode="after")
    def _consistent(self) -> BotSettings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: give both or neither")
        for path in (self.tls_cert, self.tls_key):
            if path is not None and not path.is_file():
                raise ValueError(f"there is no file {path}")
        for name, chosen, offered in (
            ("voice", self.voice, self.voices),
            ("language", self.language, self.languages),
        ):
            if chosen not in offered:
                raise ValueError(f"{name} {chosen!r} is none of the {name}s {', '.join(offered)}")
        return self
