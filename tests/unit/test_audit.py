"""The dependency audit: a real pip-audit asks a database of this test, which speaks OSV's protocol."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType

import pytest

from triton_voice.paths import project_root

ADVISORY = {
    "id": "PYSEC-2026-1",
    "aliases": ["CVE-2026-1"],
    "summary": "Too clever.",
    "affected": [
        {
            "package": {"name": "clever", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}],
        }
    ],
}


class Database(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        vulnerable = asked["package"]["name"] == "clever" and asked["version"] == "1.0"
        answer = json.dumps({"vulns": [ADVISORY]} if vulnerable else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def database(monkeypatch) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Database) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1/query"
        monkeypatch.setenv("PIP_AUDIT_VULNERABILITY_SERVICE", "osv")
        monkeypatch.setenv("PIP_AUDIT_OSV_URL", url)
        yield url
        server.shutdown()


@pytest.fixture
def audit(monkeypatch, tmp_path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", project_root() / "requirements" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    locks = [tmp_path / "one.txt", tmp_path / "two.txt"]
    locks[0].write_text("# a comment\nclever[extra]==1.0\nplain==2.0+cpu\n")
    locks[1].write_text("clever==1.1\n")
    monkeypatch.setattr(module, "LOCKS", locks)
    monkeypatch.setattr("sys.argv", ["audit"])
    return module


def test_an_advisory_for_a_pinned_release_fails_the_check_unless_accepted(audit, database, capsys, monkeypatch):
    assert audit.rounds() == [{"clever": "1.0", "plain": "2.0"}, {"clever": "1.1"}]
    code, said = audit.main(), capsys.readouterr().err
    if "NOT DONE" in said:
        pytest.skip(f"pip-audit itself could not be had: {said}")
    assert code == 1
    assert "clever" in said and "PYSEC-2026-1" in said and "1.1" in said
    assert "3 of 3 pinned releases answered for, 1 open advisories" in said
    monkeypatch.setattr("sys.argv", ["audit", "--report"])
    assert audit.main() == 0
    monkeypatch.setattr("sys.argv", ["audit", "--strict"])
    monkeypatch.setitem(audit.ACCEPTED, "CVE-2026-1", "not in the way we call it")
    assert audit.main() == 0


def test_a_database_that_cannot_be_reached_is_said_and_fails_only_where_an_answer_is_needed(audit, capsys, monkeypatch):
    monkeypatch.setenv("PIP_AUDIT_VULNERABILITY_SERVICE", "osv")
    monkeypatch.setenv("PIP_AUDIT_OSV_URL", "http://127.0.0.1:9/v1/query")
    assert audit.main() == 0
    assert "NOT DONE" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["audit", "--strict"])
    assert audit.main() == 1
