"""Nothing in the documentation points to nowhere."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from urllib.parse import unquote

import pytest

from support_docs import ROOT, anchors, links, pages


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_and_anchor_is_there(page):
    wrong = []
    for link in links(page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = page if not name else (page.parent / name).resolve()
        if not target.exists():
            wrong.append(f"{link}: there is no {target}")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text()):
            wrong.append(f"{link}: {target.name} has no such heading")
    assert not wrong


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_row_of_a_table_has_the_cells_of_its_head(page):
    cells = 0
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("|"):
            cells = 0
            continue
        found = len(re.findall(r"(?<!\\)\|", line))
        cells = cells or found
        assert found == cells, f"{page.name}:{number}: a pipe inside a cell is written \\|"


def test_every_alert_has_its_section():
    alerts = (ROOT / "docker/monitoring/alerts.yml").read_text()
    names = re.findall(r"^ *- alert: (\w+)", alerts, re.MULTILINE)
    runbooks = re.findall(r"runbook\w*: docs/operating\.md#(\S+)", alerts)
    known = anchors((ROOT / "docs/operating.md").read_text())
    assert names and len(runbooks) == len(names)
    assert [name for name in (n.lower() for n in names) if name not in known or name not in runbooks] == []


def test_stubs_are_of_the_schema(tmp_path):
    node = ROOT / "examples/node"
    buf = node / "node_modules/.bin/buf"
    if not buf.exists():
        pytest.skip("needs `npm ci` in examples/node")
    done = subprocess.run([buf, "generate", "--output", tmp_path], cwd=node, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_text() for path in (tmp_path / "stubs").iterdir()}
    assert made == {path.name: path.read_text() for path in (node / "stubs").iterdir()}, "run npm run stubs"


def test_pictures_and_schema_are_what_their_scripts_make():
    def module(path):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = loaded  # dataclasses look their module up
        spec.loader.exec_module(loaded)
        return loaded

    for name, draw in module(ROOT / "docs/pictures.py").PICTURES.items():
        assert (ROOT / "docs" / name).read_text() == draw().svg(), f"run python docs/pictures.py: {name} is old"
    for name, text in module(ROOT / "examples/make_proto.py").schema().items():
        assert (ROOT / "examples/proto" / name).read_text() == text, f"run python examples/make_proto.py: {name} is old"
