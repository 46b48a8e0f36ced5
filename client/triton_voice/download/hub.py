"""Asks the Hugging Face hub what a revision holds, and fetches it: resumed where it stopped, checked when it is there.

`huggingface_hub` speaks the protocol. Its own `hf_hub_download` begins a file anew after an interruption (since 2.0 its
partial files are unique to a process), so the partial file is kept here and handed to its `http_get`, which goes on.
Its other protocol, Xet, is not used for that reason.

A token is taken from the environment variable HF_TOKEN and from nowhere else, and goes to the hub alone, never to the
host that a download is redirected to.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from triton_voice.download.errors import DownloadError
from triton_voice.download.lock import Lock
from triton_voice.download.manifest import FileEntry, Source
from triton_voice.download.verify import difference, git_blob_id, measure

PARTIAL_SUFFIX = ".partial"
WEIGHTS_SUFFIX = ".safetensors"
LARGE_BYTES = 2**30
"""From this size on the check of a file's bytes takes seconds, and is worth a word."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it.

    Attributes:
        size: Bytes.
        sha256: Of large files; None for small ones.
        blob_id: Git's id of the content, of small files.
    """

    size: int
    sha256: str | None
    blob_id: str


@dataclass(frozen=True)
class Plan:
    """What will be fetched of one source.

    Attributes:
        source: What was asked for.
        revision: The commit.
        pinned: Whether the manifest or the lock named the commit, rather than the hub.
        files: By path in the repository.
        gated: Whether the hub wants an account that has accepted the licence.
    """

    source: Source
    revision: str
    pinned: bool
    files: dict[str, RemoteFile]
    gated: bool

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


class Hub:
    """The hub that `HF_ENDPOINT` names, huggingface.co by default.

    Args:
        token: Access token; None: `HF_TOKEN` of the environment, if it is set.

    Raises:
        DownloadError: `huggingface_hub` is not installed.
    """

    def __init__(self, token: str | None = None) -> None:
        try:
            import huggingface_hub
        except ImportError:
            raise DownloadError("huggingface_hub is missing: pip install -e '.[server]' in the checkout") from None
        # False: send none. With None it would send one that an earlier login left on the disk.
        self._token: str | bool = token or os.environ.get("HF_TOKEN") or False
        self._api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=self._token)
        self.endpoint: str = self._api.endpoint

    def plan(self, source: Source, lock: Lock) -> Plan:
        """Asks what a source's revision holds.

        Args:
            source: What to get. Its pinned sizes and checksums must be those of the hub.
            lock: Tells the revision that was resolved before, for a source without a pin.

        Raises:
            DownloadError: The hub cannot be reached, refuses, or offers other files than were pinned.
        """
        from huggingface_hub.hf_api import RepoFile

        known = source.revision or lock.resolved.get(source.repository)
        with self._errors(source):
            info = self._api.model_info(source.repository, revision=known)
            revision = info.sha
            if revision is None or (known is not None and revision != known):
                raise DownloadError(f"{self.endpoint} answers for {source.repository} with revision {revision}")
            listed = {
                entry.path: RemoteFile(
                    size=entry.lfs.size if entry.lfs else entry.size,
                    sha256=entry.lfs.sha256 if entry.lfs else None,
                    blob_id=entry.blob_id,
                )
                for entry in self._api.list_repo_tree(source.repository, recursive=True, revision=revision)
                if isinstance(entry, RepoFile)
            }
        files = _pinned(source, listed, revision)
        for path in files:
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
                raise DownloadError(f"{source.repository} lists the file {path!r}, which points out of its folder")
        return Plan(source, revision, known is not None, files, bool(info.gated))

    def fetch(
        self,
        plan: Plan,
        folder: Path,
        on_bytes: Callable[[int], None] = lambda count: None,
        on_check: Callable[[str], None] = lambda path: None,
    ) -> dict[str, FileEntry]:
        """Fetches a plan's files into a folder, going on with what is there, and checks every byte.

        Args:
            plan: What to fetch.
            folder: Where to, with the repository's own paths; partial files end in `.partial`.
            on_bytes: Called with the number of bytes that have come, or were there; negative when a part must be
                fetched again.
            on_check: Called with the path of a large file before its checksum is computed.

        Returns:
            Size and checksum of each file.

        Raises:
            DownloadError: Anything that a person must look at. What has come so far stays for the next try.
        """
        measured = {}
        for path, remote in sorted(plan.files.items()):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_file() and target.stat().st_size == remote.size:
                on_bytes(remote.size)
            else:
                with self._errors(plan.source):
                    self._fetch_file(plan, path, target, on_bytes)
            if remote.size >= LARGE_BYTES:
                on_check(path)
            measured[path] = found = measure(target)
            if wrong := _wrong(target, found, remote):
                target.unlink()
                raise DownloadError(
                    f"{plan.source.repository}: {path} {wrong}: it was damaged on the way and has been removed; "
                    "run the command again"
                )
        return measured

    def _fetch_file(self, plan: Plan, path: str, target: Path, on_bytes: Callable[[int], None]) -> None:
        """Appends to the partial file until it is whole, then gives it its name."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(plan.source.repository, path, revision=plan.revision, endpoint=self.endpoint)
        meta = get_hf_file_metadata(url, token=self._token, endpoint=self.endpoint, retry_on_errors=True)
        own_host = urlsplit(meta.location).netloc == urlsplit(self.endpoint).netloc
        headers = build_hf_headers(token=self._token if own_host else False)
        partial = target.with_name(target.name + PARTIAL_SUFFIX)
        if partial.exists() and partial.stat().st_size > plan.files[path].size:
            partial.unlink()
        with partial.open("ab") as file:
            before = file.tell()
            http_get(
                meta.location,
                file,
                resume_size=before,
                headers=headers,
                expected_size=plan.files[path].size,
                displayed_filename=path,
                tqdm_class=_bar(on_bytes),
            )
        partial.replace(target)

    @contextlib.contextmanager
    def _errors(self, source: Source) -> Iterator[None]:
        """Words what can go wrong for the person who waits."""
        from huggingface_hub import errors

        page = f"{self.endpoint}/{source.repository}"
        try:
            yield
        except errors.GatedRepoError:
            raise DownloadError(
                f"{source.repository} is gated: accept its licence at {page} while logged in, then set HF_TOKEN to an "
                "access token of that account" + (" (the present one is not allowed)" if self._token else "")
            ) from None
        except errors.RevisionNotFoundError:
            raise DownloadError(
                f"{source.repository} has no revision {source.revision} (any more); look at {page}/commits/main"
            ) from None
        except errors.RepositoryNotFoundError:
            raise DownloadError(
                f"{page} is not there, or private: "
                + ("the token in HF_TOKEN does not open it" if self._token else "a private one needs HF_TOKEN")
            ) from None
        except errors.OfflineModeIsEnabled:
            raise DownloadError(
                "HF_HUB_OFFLINE is set; unset it, or use --from with a folder that has the files"
            ) from None
        except errors.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else "no status"
            if status in (401, 403) and self._token:
                raise DownloadError(
                    f"{self.endpoint} does not accept the token in HF_TOKEN ({status}); unset it or set a valid one"
                ) from None
            raise DownloadError(f"{self.endpoint} answers {status} for {source.repository}; try again later") from None
        except errors.HTTPError as error:  # httpx's base class: no connection, or lost in the middle
            raise DownloadError(
                f"{self.endpoint} cannot be reached ({type(error).__name__}: {error}). Run the command again to go on; "
                "without a network, fetch the files elsewhere and use --from"
            ) from None
        except OSError as error:
            raise _storage(error, source) from None

    def __repr__(self) -> str:
        return f"Hub({self.endpoint!r})"


def _storage(error: OSError, source: Source) -> DownloadError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DownloadError(
            f"the disk is full while {source.repository} comes in ({error.filename or error}): make room and run the "
            "command again, it goes on where it stopped"
        )
    return DownloadError(f"{source.repository}: {error}; run the command again, it goes on where it stopped")


def _pinned(source: Source, listed: dict[str, RemoteFile], revision: str) -> dict[str, RemoteFile]:
    """Returns the files that the manifest wants, after comparing what it knows of them with what the hub says."""
    if source.files is None:
        size = sum(file.size for path, file in listed.items() if path.endswith(WEIGHTS_SUFFIX))
        if source.weights_size not in (None, size):
            raise DownloadError(
                f"{source.repository} on the hub has {size} bytes of weights instead of {source.weights_size} (the "
                "manifest's): refused"
            )
        return listed
    files = {}
    for path, expected in source.files.items():
        if path not in listed:
            raise DownloadError(f"{source.repository} has no file {path} at revision {revision}")
        remote = listed[path]
        if wrong := difference(FileEntry(size=remote.size, sha256=remote.sha256 or expected.sha256), expected):
            raise DownloadError(f"{source.repository}: {path} on the hub {wrong} (the manifest's): refused")
        files[path] = RemoteFile(remote.size, remote.sha256 or expected.sha256, remote.blob_id)
    return files


def _wrong(path: Path, found: FileEntry, remote: RemoteFile) -> str | None:
    if wrong := difference(found, FileEntry(size=remote.size, sha256=remote.sha256)):
        return wrong
    if remote.sha256 is None and git_blob_id(path) != remote.blob_id:
        return "is not the hub's content"
    return None


def _bar(on_bytes: Callable[[int], None]) -> Any:
    """Returns what `http_get` takes for a progress bar: a class of which it makes one, and updates it."""

    class Bar:
        def __init__(self, *, initial: int = 0, **options: object) -> None:
            on_bytes(initial)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self, count: int = 1) -> None:
            on_bytes(count)

    return Bar
