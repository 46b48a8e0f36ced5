"""Who may do what with a server: encryption, client certificates, closed APIs, limits, and what its log tells."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tritonclient.utils import InferenceServerException

from triton_voice import InvalidInput, Tls, TritonVoice
from triton_voice.logs import triton_line
from triton_voice.server import ServerSettings, TritonServer
from triton_voice.server.tls import subject


class Authority:
    """A certificate authority of one's own."""

    def __init__(self, folder, name):
        self.folder, self.name, self.key = folder, name, ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(name, self.key, authority=True)
        self.file = self._write(f"{name}.pem", self.certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name, *names):
        """Returns a certificate's file and its key's."""
        key = ec.generate_private_key(ec.SECP256R1())
        plain = serialization.NoEncryption()
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        certificate = self._sign(name, key, names)
        return (
            self._write(f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM)),
            self._write(f"{name}.key", private),
        )

    def _sign(self, name, key, names=(), authority=False):
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_called(name))
            .issuer_name(_called(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def _write(self, name, text):
        path = self.folder / name
        path.write_bytes(text)
        return path


def _called(name):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


HERE = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))


def empty_server(**settings):
    """A server without models: it is there in a second."""
    return TritonServer(ServerSettings(grpc_port=0, http_port=0, metrics_port=0, device="cpu", only=(), **settings))


async def is_live(url, tls=None):
    async with TritonVoice(url, tls=tls) as voice:
        return (await voice.ready(())).live


async def test_grpc_by_tls_is_for_those_who_trust_its_authority(tmp_path, monkeypatch):
    own, other = Authority(tmp_path, "own"), Authority(tmp_path, "other")
    cert, key = own.issue("spark", *HERE)
    with empty_server(tls_cert=cert, tls_key=key, host="0.0.0.0") as server:
        assert await is_live(server.grpc_url, Tls(own.file))
        assert not await is_live(server.grpc_url, Tls(other.file)), "a stranger's certificate was accepted"
        assert not await is_live(server.grpc_url), "it answers without encryption"
        monkeypatch.setenv("TRITON_VOICE_CA", str(own.file))
        assert await is_live(f"grpcs://{server.grpc_url}")
        # Triton's HTTP is never encrypted, so it is for this machine alone.
        assert _listens_on(server.http_port) == {"127.0.0.1"} and _listens_on(server.grpc_port) != {"127.0.0.1"}


async def test_a_server_that_wants_client_certificates_gets_them(tmp_path):
    servers, clients = Authority(tmp_path, "servers"), Authority(tmp_path, "clients")
    cert, key = servers.issue("spark", x509.DNSName("spark.example"))
    with empty_server(tls_cert=cert, tls_key=key, tls_client_ca=clients.file) as server:
        named = {"server_name": "spark.example"}
        assert await is_live(server.grpc_url, Tls(servers.file, *clients.issue("bot"), **named))
        assert not await is_live(server.grpc_url, Tls(servers.file, **named)), "nobody asked for a certificate"
        assert not await is_live(server.grpc_url, Tls(servers.file, *servers.issue("guest"), **named))


def test_a_certificate_that_no_client_would_take_is_refused_in_words(tmp_path):
    authority = Authority(tmp_path, "own")
    with pytest.raises(ValueError, match="no subject alternative name"):
        subject(authority.issue("nameless")[0])
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    with pytest.raises(ValueError, match="not a certificate"):
        subject(nonsense)


def _listens_on(port):
    import psutil

    found = psutil.net_connections("tcp")
    return {c.laddr.ip.removeprefix("::ffff:") for c in found if c.status == "LISTEN" and c.laddr.port == port}


async def test_what_changes_the_server_is_closed_to_clients():
    with empty_server() as server:
        client = triton.InferenceServerClient(server.grpc_url)
        attempts = {
            "load": lambda: client.load_model("parakeet"),
            "index": lambda: client.get_model_repository_index(),
            "shared memory": lambda: client.register_system_shared_memory("a", "/a", 1),
            "trace": lambda: client.get_trace_settings(),
            "log": lambda: client.update_log_settings({"log_file": "/tmp/x"}),
        }
        for name, attempt in attempts.items():
            with pytest.raises(InferenceServerException) as refused:
                await attempt()
            assert refused.value.status() == "StatusCode.UNAVAILABLE" and "restricted" in str(refused.value), name
        await client.close()
        for path in ("repository/index", "repository/models/parakeet/load", "systemsharedmemory/status", "logging"):
            method = "POST" if path.startswith("repository") else "GET"
            url = f"http://127.0.0.1:{server.http_port}/v2/{path}"
            with pytest.raises(urllib.error.HTTPError) as closed:
                urllib.request.urlopen(urllib.request.Request(url, b"{}" if method == "POST" else None, method=method))
            assert closed.value.code == 403, path


def test_by_default_only_this_machine_is_served():
    with empty_server() as server:
        for port in (server.grpc_port, server.http_port, server.metrics_port):
            assert _listens_on(port) == {"127.0.0.1"}


async def test_the_log_names_the_conversation_of_a_refused_request_and_not_its_words(server):
    secret = "the words of the user"
    async with TritonVoice(server.grpc, conversation="conv-7.x") as voice:
        with pytest.raises(InvalidInput):
            async for _ in voice.speak(secret, voice="nobody"):
                pass
        with pytest.raises(InvalidInput):
            async for _ in voice.chat(secret, temperature=-1):
                pass
        with pytest.raises(InvalidInput):
            async with voice.open_stream(latency_ms=7) as stream:
                await stream.send(np.zeros(160, np.int16))
    lines = [json.loads(triton_line(line)) for line in server.server.log_file.read_text().splitlines()]
    ours = [line for line in lines if line.get("conversation") == "conv-7.x"]
    assert {re.match(r"\[(\w+)\] (\w+)", line["message"]).groups() for line in ours} == {
        ("magpie", "invalid"),
        ("nemotron", "invalid"),
        ("parakeet", "invalid"),
    }
    assert all(line["level"] == "warning" and line["time"] and line["where"] for line in ours)
    assert secret not in server.server.log_file.read_text()


async def test_a_forged_conversation_cannot_write_log_lines_of_its_own(server):
    with pytest.raises(ValueError, match="letters, digits"):
        TritonVoice(server.grpc, conversation="a\nE1120 forged")
    channel = triton.InferenceServerClient(server.grpc)
    tensor = triton.InferInput("AUDIO", [1, 0], "INT16")
    tensor.set_data_from_numpy(np.zeros((1, 0), np.int16))
    with pytest.raises((InferenceServerException, grpc.RpcError)):
        await channel.infer(
            "parakeet",
            [tensor],
            sequence_id="forged",
            sequence_start=True,
            sequence_end=True,
            parameters={"latency_ms": 7},
            headers={"triton_voice_conversation": "x conversation=forged " + "y" * 100},
        )
    await channel.close()
    assert "forged" not in server.server.log_file.read_text()
