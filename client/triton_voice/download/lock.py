"""What was got: the file beside the weights that says which repository, revision and bytes they are."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from triton_voice.download.errors import DownloadError
from triton_voice.download.manifest import COMMIT_PATTERN, FileEntry, Part

LOCK_NAME = "triton-voice.lock.json"


class LockedSource(BaseModel):
    """One part as it lies in the folder.

    Attributes:
        repository: Where it came from.
        revision: The commit; None: the files came from a folder and nothing told which.
        license: Name of the licence that was accepted.
        license_link: Where it can be read.
        files: Each file's size and checksum, by its path in the repository.
        profile: The language model's profile that it was got for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    repository: str
    revision: str | None = Field(default=None, pattern=COMMIT_PATTERN)
    license: str | None = None
    license_link: str | None = None
    files: dict[str, FileEntry]
    profile: str | None = None


class Lock(BaseModel):
    """Parts of one folder.

    Attributes:
        parts: What each part is.
        resolved: Revisions that were asked of the hub because the manifest has none, by repository. Kept from the
            moment they are known, so that a download that is taken up again does not change its mind.
    """

    model_config = ConfigDict(extra="forbid")

    parts: dict[Part, LockedSource] = {}
    resolved: dict[str, str] = {}

    @classmethod
    def read(cls, folder: Path) -> Lock:
        """Reads a folder's lock; an empty one if it has none.

        Raises:
            DownloadError: It is not a lock.
        """
        path = folder / LOCK_NAME
        if not path.is_file():
            return cls()
        try:
            return cls.model_validate_json(path.read_text())
        except (OSError, ValidationError) as error:
            raise DownloadError(f"{path} cannot be read ({error}); remove it and verify the folder again") from None

    def write(self, folder: Path) -> None:
        """Writes it, whole or not at all."""
        path = folder / LOCK_NAME
        temporary = path.with_suffix(".partial")
        temporary.write_text(self.model_dump_json(indent=2, exclude_none=True) + "\n")
        temporary.replace(path)
