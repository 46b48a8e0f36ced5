"""What there is to get: repositories, pinned revisions, files, licences."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from triton_voice.download.errors import DownloadError
from triton_voice.paths import project_root
from triton_voice.server.settings import llm_profiles

Part = Literal["parakeet", "magpie", "codec", "nemotron"]
PARTS: tuple[Part, ...] = ("parakeet", "magpie", "codec", "nemotron")

COMMIT_PATTERN = r"^[0-9a-f]{40}$"
SHA256_PATTERN = r"^[0-9a-f]{64}$"
DEFAULT_PROFILE = "spark-fp8"
"""The profile that `1/model.json` equals."""


class FileEntry(BaseModel):
    """One file.

    Attributes:
        size: Bytes; None: not known.
        sha256: Hexadecimal; None: not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int | None = Field(default=None, ge=0)
    sha256: str | None = Field(default=None, pattern=SHA256_PATTERN)


class Source(BaseModel):
    """One repository of the hub, at one revision.

    Attributes:
        part: Which part of the agent it is.
        repository: `owner/name`.
        revision: The commit; None: not known, the command asks for the newest and records it.
        files: Which files are needed; None: all.
        weights_size: Bytes of all `.safetensors` together, where `files` is None; None: not known.
        license: Name of the licence.
        license_link: Where it can be read.
        gated: Whether the hub wants an account that has accepted the licence; None: not known.
        note: For people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: Part
    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = Field(default=None, pattern=COMMIT_PATTERN)
    files: dict[str, FileEntry] | None = None
    weights_size: int | None = Field(default=None, ge=0)
    license: str | None = None
    license_link: str | None = None
    gated: bool | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _one_file_of_speech(self) -> Source:
        if self.part != "nemotron" and len(self.files or {}) != 1:
            raise ValueError(f"{self.repository}: a {self.part} is one .nemo file: name it in `files`")
        return self

    @property
    def name(self) -> str:
        """Last part of the repository's name."""
        return self.repository.rsplit("/", 1)[1]


class Manifest(BaseModel):
    """The list of sources.

    Attributes:
        about: For people.
        sources: One for each part, and for `nemotron` one for each model that a profile may name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str | None = None
    sources: tuple[Source, ...]

    @classmethod
    def load(cls, path: Path | None = None) -> Manifest:
        """Reads a manifest.

        Args:
            path: A file; None: the package's own.

        Raises:
            DownloadError: It cannot be read or is not a manifest.
        """
        try:
            text = (resources.files(__package__) / "manifest.json").read_text() if path is None else path.read_text()
            return cls.model_validate_json(text)
        except OSError as error:
            raise DownloadError(f"the manifest {path} cannot be read: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(piece) for piece in first["loc"])
            raise DownloadError(f"{path or 'the manifest'} is not a manifest: {where}: {first['msg']}") from None

    def choose(self, parts: tuple[Part, ...], repository: str | None) -> list[Source]:
        """Returns the sources of some parts.

        Args:
            parts: Which parts, in any order.
            repository: The language model's; None: the first that the manifest lists. One that it does not list is
                taken without a pin.

        Raises:
            DownloadError: A part is not listed.
        """
        chosen = []
        for part in (part for part in PARTS if part in parts):
            listed = [source for source in self.sources if source.part == part]
            if part == "nemotron" and repository is not None:
                listed = [source for source in listed if source.repository == repository] or [
                    _unlisted(part, repository)
                ]
            if not listed:
                raise DownloadError(f"the manifest lists nothing for {part}")
            chosen.append(listed[0])
        return chosen


def _unlisted(part: Part, repository: str) -> Source:
    try:
        return Source(part=part, repository=repository)
    except ValidationError:
        raise DownloadError(f"{repository!r} is neither a profile nor a repository of the hub (owner/name)") from None


def profile_file(llm: str) -> Path | None:
    """Returns the `model.json` of a profile's name or path; None: it is neither, so a repository's name."""
    if llm in llm_profiles():
        return project_root() / "model_repository" / "nemotron" / "profiles" / f"{llm}.json"
    return Path(llm).expanduser() if llm.endswith(".json") else None


def repository_of(llm: str) -> str:
    """Returns the repository that a profile, a `model.json` or a repository's own name stands for.

    Raises:
        DownloadError: The file cannot be read or names no model.
    """
    file = profile_file(llm)
    if file is None:
        return llm
    try:
        return str(json.loads(file.read_text())["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        known = ", ".join(llm_profiles())
        raise DownloadError(f"{file} names no model ({error}); the profiles are {known}") from None
