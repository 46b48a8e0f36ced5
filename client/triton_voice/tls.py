"""Encrypted connections: whom the client trusts, and how it shows who it is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

SCHEME = "grpcs://"
"""A URL that begins so is connected to by TLS, with what `Tls.from_environment` finds."""
CA_VARIABLE = "TRITON_VOICE_CA"
CLIENT_CERT_VARIABLE = "TRITON_VOICE_CLIENT_CERT"
CLIENT_KEY_VARIABLE = "TRITON_VOICE_CLIENT_KEY"


@dataclass(frozen=True)
class Tls:
    """What a TLS connection needs. All files are PEM.

    Attributes:
        ca: Certificates that are trusted to have issued the server's; None takes gRPC's own list of public ones.
        cert: The client's certificate, for a server that asks for one (`serve --tls-client-ca`).
        key: Its private key.
        server_name: The name that the server's certificate must carry; None takes the one in the URL.

    Raises:
        ValueError: Certificate and key are not given together.
        FileNotFoundError: One of the files is not there.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("a client certificate and its key belong together: give both or neither")
        for path in (self.ca, self.cert, self.key):
            if path is not None and not Path(path).is_file():
                raise FileNotFoundError(f"there is no file {path}")

    @classmethod
    def from_environment(cls) -> Tls:
        """Reads `TRITON_VOICE_CA`, `TRITON_VOICE_CLIENT_CERT` and `TRITON_VOICE_CLIENT_KEY`; all may be missing."""
        ca, cert, key = (
            os.environ.get(name) or None for name in (CA_VARIABLE, CLIENT_CERT_VARIABLE, CLIENT_KEY_VARIABLE)
        )
        return cls(ca, cert, key)

    def arguments(self) -> dict[str, str | bool | None]:
        """Returns what tritonclient's `InferenceServerClient` is told, synchronous or not."""
        paths = {"root_certificates": self.ca, "certificate_chain": self.cert, "private_key": self.key}
        return {"ssl": True, **{name: None if path is None else str(path) for name, path in paths.items()}}

    def channel_args(self) -> list[tuple[str, str]]:
        """Returns gRPC's options of the connection."""
        return [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []
