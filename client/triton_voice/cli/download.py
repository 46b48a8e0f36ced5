"""`triton-voice download`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from triton_voice.cli.console import err, fail, out
from triton_voice.download import LOCK_NAME, PARTS, DownloadError, Lock, LockedSource, Manifest, Part, Source, folder
from triton_voice.download.hub import Hub, Plan
from triton_voice.download.layout import alone, damage, default_folder, install, place_of, present, staging_of
from triton_voice.download.manifest import DEFAULT_PROFILE, profile_file, repository_of

SPARE_BYTES = 2**30
"""Room that must be left on the disk: a full one breaks more than this command."""


def download(
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder for the weights. Default: `published` in the cache folder.")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help=f"Get only these, comma separated, of {', '.join(PARTS)}.")
    ] = None,
    llm: Annotated[
        str, typer.Option("--llm", help="Language model: a profile, as of `serve --llm`, or a repository of the hub.")
    ] = DEFAULT_PROFILE,
    source: Annotated[
        Path | None, typer.Option("--from", help="Take the files from this folder; the network is not used.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Only compare every byte with what was recorded.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept the licences without asking.")] = False,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="Another list of what to get. Default: the one in the package.")
    ] = None,
) -> None:
    """Get the published weights, pinned and verified, and lay them out for `triton-voice serve --models`.

    Shows sizes, licences and the room on the disk first. After an interruption, run it again: it goes on where it
    stopped. A gated repository needs the environment variable HF_TOKEN. HF_ENDPOINT names another hub.
    """
    target = (to or default_folder()).expanduser().resolve()
    if verify:
        _verify(target)
        return
    listing = Manifest.load(manifest)
    chosen = listing.choose(_parts(only, listing), _repository(llm, manifest))
    profile = llm if profile_file(llm) and any(part.repository == repository_of(llm) for part in chosen) else None
    try:
        target.mkdir(parents=True, exist_ok=True)
        with alone(target):
            if source is not None:
                _from_folder(chosen, source.expanduser().resolve(), target, profile)
            else:
                _from_hub(chosen, target, profile, yes)
    except OSError as error:  # a folder that may not be written, a disk that fails
        raise DownloadError(f"{target}: {error.strerror or error}") from None
    out.print(f"start them: triton-voice serve --models {target}", soft_wrap=True, highlight=False)


def _parts(only: str | None, listing: Manifest) -> tuple[Part, ...]:
    if only is None:
        return tuple(part for part in PARTS if any(source.part == part for source in listing.sources))
    names = [name.strip() for name in only.split(",")]
    if unknown := [name for name in names if name not in PARTS]:
        raise DownloadError(f"--only {', '.join(unknown)}: there are {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in names)


def _repository(llm: str, manifest: Path | None) -> str | None:
    """Returns the language model's repository; None leaves the choice to a manifest of one's own."""
    return None if manifest is not None and llm == DEFAULT_PROFILE else repository_of(llm)


def _from_hub(chosen: list[Source], target: Path, profile: str | None, yes: bool) -> None:
    lock = Lock.read(target)
    there = present(target, lock, [source.part for source in chosen])
    hub = Hub()
    with err.status(f"asking {hub.endpoint} ..."):
        plans = []
        for source in chosen:
            plan = hub.plan(source, lock)
            if not plan.pinned:
                lock.resolved[source.repository] = plan.revision
                lock.write(target)
            plans.append(plan)
    needed = [plan for plan in plans if not (there[plan.source.part] and _is(plan, lock))]
    _show(plans, needed, target)
    if not needed:
        _record_profile(lock, target, profile)
        return
    _check_room(needed, target)
    _accept(needed, yes)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=err,
    ) as progress:
        for plan in needed:
            part = plan.source.part
            task = progress.add_task(f"{part:9}", total=plan.size)
            staged = staging_of(target, part, plan.revision)
            files = hub.fetch(
                plan,
                staged,
                on_bytes=lambda count, task=task: progress.advance(task, count),  # type: ignore[misc]
                on_check=lambda path: progress.console.print(f"checking {path}", style="dim", highlight=False),
            )
            install(staged, target, part)
            lock.parts[part] = LockedSource(
                repository=plan.source.repository,
                revision=plan.revision,
                license=plan.source.license,
                license_link=plan.source.license_link,
                files=files,
                profile=profile if part == "nemotron" else None,
            )
            lock.write(target)
    out.print(f"{len(needed)} downloaded and verified, recorded in {target / LOCK_NAME}", soft_wrap=True)


def _is(plan: Plan, lock: Lock) -> bool:
    locked = lock.parts.get(plan.source.part)
    return locked is not None and (locked.repository, locked.revision) == (plan.source.repository, plan.revision)


def _record_profile(lock: Lock, target: Path, profile: str | None) -> None:
    """Another profile of the same weights, e.g. without CUDA graphs: only the record changes."""
    locked = lock.parts.get("nemotron")
    if locked is not None and profile is not None and locked.profile != profile:
        lock.parts["nemotron"] = locked.model_copy(update={"profile": profile})
        lock.write(target)


def _show(plans: list[Plan], needed: list[Plan], target: Path) -> None:
    table = Table("part", "repository", "revision", "licence", "size", "to get")
    for plan in plans:
        table.add_row(
            plan.source.part,
            plan.source.repository,
            plan.revision[:12],
            (plan.source.license or "see its page") + (", gated" if plan.gated else ""),
            decimal(plan.size),
            decimal(_missing_bytes(plan, target)) if plan in needed else "there",
        )
    to_get = sum(_missing_bytes(plan, target) for plan in needed)
    free = shutil.disk_usage(target).free
    for plan in plans:
        if not plan.pinned:
            err.print(f"{plan.source.repository}: no pin; its newest revision, {plan.revision}, is now recorded")
    err.print(Group(table, f"{decimal(to_get)} to get, {decimal(free)} free in {target}"), soft_wrap=True)


def _missing_bytes(plan: Plan, target: Path) -> int:
    """Returns what is still to come: an earlier run's files and partial files count."""
    staged = staging_of(target, plan.source.part, plan.revision)
    there = sum(path.stat().st_size for path in staged.rglob("*") if path.is_file()) if staged.is_dir() else 0
    return max(0, plan.size - there)


def _check_room(needed: list[Plan], target: Path) -> None:
    to_get = sum(_missing_bytes(plan, target) for plan in needed)
    free = shutil.disk_usage(target).free
    if to_get + SPARE_BYTES > free:
        raise DownloadError(
            f"{decimal(to_get)} are to come and {decimal(free)} are free in {target}: "
            f"{decimal(to_get + SPARE_BYTES - free)} too few. Make room, or name another disk with --to"
        )


def _accept(needed: list[Plan], yes: bool) -> None:
    pages = {
        plan.source.license or plan.source.repository: plan.source.license_link or "see its page on the hub"
        for plan in needed
    }
    for name, link in sorted(pages.items()):
        err.print(f"{name}: {link}", soft_wrap=True, highlight=False)
    if yes:
        return
    if not sys.stdin.isatty():
        raise DownloadError("say --yes to accept these licences; there is no terminal to ask at")
    if not typer.confirm("Do you accept these licences?", err=True):
        fail("nothing was downloaded")


def _from_folder(chosen: list[Source], source_folder: Path, target: Path, profile: str | None) -> None:
    if not source_folder.is_dir():
        raise DownloadError(f"--from {source_folder} is not a folder")
    came_with = Lock.read(source_folder)
    lock = Lock.read(target)
    if source_folder != target:
        present(target, lock, [source.part for source in chosen])  # refuses to replace what it did not place
    unchecked = []
    for source in chosen:
        with err.status(f"checking {source.repository} ..."):
            files = folder.find(source, source_folder)
            measured, compared = folder.check(source, files, came_with)
            revision = folder.revision_of(source, files, came_with, compared)
            if source_folder != target:
                staged = staging_of(target, source.part, revision)
                folder.place(files, staged)
                install(staged, target, source.part)
        if not compared:
            unchecked.append(source.repository)
        locked = came_with.parts.get(source.part)
        lock.parts[source.part] = LockedSource(
            repository=source.repository,
            revision=revision,
            license=source.license,
            license_link=source.license_link,
            files=measured,
            profile=(profile or (locked.profile if locked else None)) if source.part == "nemotron" else None,
        )
        lock.write(target)
        err.print(f"{source.part:9} {place_of(target, source.part)}", soft_wrap=True, highlight=False)
    if unchecked:
        err.print(
            f"[yellow]not compared, no checksum is known: {', '.join(unchecked)}[/]. What is there now is recorded.",
            soft_wrap=True,
        )


def _verify(target: Path) -> None:
    lock = Lock.read(target)
    if not lock.parts:
        raise DownloadError(f"{target} has no {LOCK_NAME}: nothing was downloaded there")
    problems: list[str] = []
    for part, locked in lock.parts.items():
        with err.status(f"{part}: reading every byte ..."):
            wrong = damage(target, part, lock)
        problems += wrong
        state = "[red]damaged[/]" if wrong else "[green]whole[/]"
        revision = (locked.revision or "no revision")[:12]
        out.print(f"{part:9} {state}  {locked.repository}  {revision}", soft_wrap=True, highlight=False)
    if problems:
        fail(problems[0], *problems[1:], "Remove what is damaged and run the command without --verify.")
