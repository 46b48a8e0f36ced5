"""Triton's side of TLS: its flags, and how the process that starts it connects to it."""

from __future__ import annotations

from pathlib import Path

from triton_voice.server.settings import ServerSettings
from triton_voice.tls import Tls


def flags(settings: ServerSettings, run_dir: Path) -> list[str]:
    """Returns Triton's flags for gRPC by TLS; none if no certificate is set.

    Args:
        settings: Have the certificate and its key, and whom clients' certificates must be from.
        run_dir: A folder of this server's own.
    """
    if settings.tls_cert is None:
        return []
    chosen = [f"--grpc-server-cert={settings.tls_cert}", f"--grpc-server-key={settings.tls_key}"]
    if settings.tls_client_ca is None:
        return ["--grpc-use-ssl=true", *chosen]
    # The starting process shows the server's own certificate, whoever issued it.
    roots = run_dir / "client-roots.pem"
    roots.write_bytes(settings.tls_client_ca.read_bytes() + b"\n" + settings.tls_cert.read_bytes())
    return ["--grpc-use-ssl-mutual=true", *chosen, f"--grpc-root-cert={roots}"]


def local_connection(settings: ServerSettings) -> Tls | None:
    """Returns how this machine's own client connects: it trusts this one certificate, by whatever name it has."""
    if settings.tls_cert is None:
        return None
    cert, key = (settings.tls_cert, settings.tls_key) if settings.tls_client_ca is not None else (None, None)
    return Tls(settings.tls_cert, cert, key, subject(settings.tls_cert))


def subject(path: Path) -> str:
    """Returns the first name that a certificate is for.

    Raises:
        ValueError: The file is no PEM certificate, or the certificate names nobody that a client could ask for.
    """
    from cryptography import x509  # not above: a server without TLS does not need it

    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except ValueError as error:
        raise ValueError(f"{path} is not a certificate in PEM: {error}") from None
    except x509.ExtensionNotFound:
        raise ValueError(f"{path} has no subject alternative name: clients refuse a certificate without one") from None
    for value in (*names.get_values_for_type(x509.DNSName), *names.get_values_for_type(x509.IPAddress)):
        return str(value)
    raise ValueError(f"{path} names neither a host nor an address")
