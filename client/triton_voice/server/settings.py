"""What `triton-voice serve` can be told, by flag or by environment variable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from triton_voice.paths import project_root

MODELS = ("nemotron", "parakeet", "magpie")
"""The three models in loading order: on unified memory vLLM must measure the free memory alone, so it goes first."""

Device = Literal["auto", "cpu", "cuda"]


def llm_profiles() -> tuple[str, ...]:
    """Returns the names of the language model's profiles: engine arguments for a machine, as `model.json` files."""
    return tuple(sorted(path.stem for path in (project_root() / "model_repository/nemotron/profiles").glob("*.json")))


def is_llm_profile(llm: str | None) -> bool:
    """Tells a profile's name or a `model.json` from a folder and from a repository of the hub."""
    return llm is not None and (llm.endswith(".json") or llm in llm_profiles())


class Weights(BaseModel):
    """Which checkpoint each model loads: a path or a hub name; None leaves what config.pbtxt and model.json name.

    Attributes:
        llm: Also the name of a profile, or the path of a `model.json`.
        llm_profile: A profile beside the folder that `llm` is: its engine arguments, with these weights.
        label: What a person should know of them, e.g. that they are random.
    """

    model_config = ConfigDict(frozen=True)

    parakeet: str | None = None
    magpie: str | None = None
    codec: str | None = None
    llm: str | None = None
    llm_profile: str | None = None
    label: str = "the published checkpoints"

    def environment(self) -> dict[str, str]:
        """Returns the variables by which the models are told."""
        named = {
            "PARAKEET_CHECKPOINT": self.parakeet,
            "MAGPIE_CHECKPOINT": self.magpie,
            "MAGPIE_CODEC": self.codec,
            "NEMOTRON_PROFILE": self.llm_profile,
        }
        named["NEMOTRON_PROFILE" if is_llm_profile(self.llm) else "NEMOTRON_MODEL"] = self.llm
        return {name: _whole_path(value) for name, value in named.items() if value is not None}


def _whole_path(source: str) -> str:
    """Makes a path absolute, since the server runs in a folder of its own; hub names and profiles stay as they are."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() or source.endswith((".json", ".nemo")) else source


class ServerSettings(BaseSettings):
    """How the server is started. Each field is also the variable `TRITON_VOICE_<FIELD>`.

    Attributes:
        host: Address that all three ports listen on.
        grpc_port: KServe gRPC.
        http_port: KServe HTTP.
        metrics_port: Prometheus.
        device: Where the models run; `auto` takes CUDA when there is one.
        only: Which models to load; as a string, comma separated.
        model_repository: The repository; None is the project's own.
        log_file: Triton's and the models' log; None is a file in the cache folder.
        load_timeout_s: How long one model may take to load, seconds.
        stop_timeout_s: How long Triton may take to stop before it is killed, seconds.
        hang_timeout_s: After how long without a step and without an answer to a small request a model counts as hung,
            seconds; 0 asks none.
        verbose: Log at Triton's verbose level 1.
        log_format: `text`, or `json`: one JSON object a line on stdout, Triton's and the models' lines too.
        trace: OTLP/HTTP URL that Triton's spans go to, e.g. http://localhost:4318/v1/traces. Only calls that carry a
            sampled `traceparent` are traced.
        tls_cert: Certificate (PEM) of the gRPC port. HTTP, which Triton never encrypts, then listens on loopback only.
        tls_key: Its private key (PEM).
        tls_client_ca: Clients must show a certificate that one of these (PEM) issued.
    """

    model_config = SettingsConfigDict(env_prefix="TRITON_VOICE_", extra="ignore")

    host: str = "127.0.0.1"
    grpc_port: int = Field(default=8001, ge=0, le=65535)
    http_port: int = Field(default=8000, ge=0, le=65535)
    metrics_port: int = Field(default=8002, ge=0, le=65535)
    device: Device = "auto"
    only: Annotated[tuple[str, ...], NoDecode] = MODELS
    model_repository: Path | None = None
    log_file: Path | None = None
    load_timeout_s: float = 1800.0
    stop_timeout_s: float = 30.0
    hang_timeout_s: float = Field(default=120.0, ge=0)
    verbose: bool = False
    log_format: Literal["text", "json"] = "text"
    trace: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None

    @property
    def repository(self) -> Path:
        """The model repository that is served."""
        return (self.model_repository or project_root() / "model_repository").absolute()

    @property
    def http_host(self) -> str:
        """Address of the HTTP port: loopback where gRPC is encrypted, because Triton's HTTP never is."""
        return self.host if self.tls_cert is None else "127.0.0.1"

    @model_validator(mode="after")
    def _consistent(self) -> ServerSettings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: give both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        for path in (self.tls_cert, self.tls_key, self.tls_client_ca):
            if path is not None and not path.is_file():
                raise ValueError(f"there is no file {path}")
        if self.trace is not None and not self.trace.startswith(("http://", "https://")):
            raise ValueError(f"trace is a URL such as http://localhost:4318/v1/traces; it is {self.trace!r}")
        return self

    @field_validator("only", mode="before")
    @classmethod
    def _known_models(cls, value: object) -> object:
        names = tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value
        if isinstance(names, tuple) and (unknown := [str(name) for name in names if name not in MODELS]):
            raise ValueError(f"{', '.join(unknown)}: there are {', '.join(MODELS)}")
        return names
