"""Who may talk to a local cluster: its certificates, its bearer token, and the kubeconfig.

One directory holds an authority, a server certificate for loopback addresses signed by it, and a
token. What is there is kept, so that a restart does not lock out clients; what the certificate no
longer covers (an address, or time) is made anew. Private files are readable by their owner only.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

VALID_DAYS = 3650
RENEW_BEFORE_DAYS = 30
HOSTS = ("127.0.0.1", "::1", "localhost", "kubernetes", "kubernetes.default")
"""Names and addresses a server certificate is always good for."""
TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class Credentials:
    """The files of a cluster's directory, and its token."""

    authority: Path
    certificate: Path
    key: Path
    token: str


def credentials(directory: Path, now_s: float, hosts: Sequence[str] = ()) -> Credentials:
    """Return the credentials in *directory*, making what is missing.

    *hosts* are further names and addresses the certificate has to be good for.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = Credentials(
        directory / "ca.crt", directory / "server.crt", directory / "server.key", ""
    )
    wanted = sorted({*HOSTS, *hosts})
    if not _covers(found, wanted, now_s):
        _make(found, directory / "ca.key", wanted, now_s)
    token_file = directory / "token"
    if not token_file.exists():
        write_private(token_file, secrets.token_urlsafe(TOKEN_BYTES).encode())
    token = token_file.read_text().strip()
    return Credentials(found.authority, found.certificate, found.key, token)


def write_kubeconfig(
    path: Path, server: str, found: Credentials, *, name: str = "spinney", namespace: str = ""
) -> None:
    """Write a kubeconfig for the API at the URL *server*, with everything it needs in it."""
    context: dict[str, Any] = {"cluster": name, "user": name}
    if namespace:
        context["namespace"] = namespace
    authority = found.authority.read_bytes()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [
            {
                "name": name,
                "cluster": {
                    "server": server,
                    "certificate-authority-data": _base64(authority),
                },
            }
        ],
        "users": [{"name": name, "user": {"token": found.token}}],
        "contexts": [{"name": name, "context": context}],
    }
    write_private(path, yaml.safe_dump(config, sort_keys=False).encode())


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, all of it or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    partial.replace(path)


def _covers(found: Credentials, hosts: Sequence[str], now_s: float) -> bool:
    files = (found.authority, found.certificate, found.key)
    if not all(file.exists() for file in files):
        return False
    certificate = x509.load_pem_x509_certificate(found.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    covered = {*names.get_values_for_type(x509.DNSName)}
    covered |= {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    left = certificate.not_valid_after_utc - _at(now_s)
    return set(hosts) <= covered and left > timedelta(days=RENEW_BEFORE_DAYS)


def _make(found: Credentials, authority_key: Path, hosts: Sequence[str], now_s: float) -> None:
    issuer_key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "spinney-ca")])
    identity = x509.SubjectKeyIdentifier.from_public_key(issuer_key.public_key())
    authority = (
        _certificate(issuer, issuer, issuer_key, now_s)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(identity, critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "spinney-apiserver")])
    certificate = (
        _certificate(subject, issuer, key, now_s)
        .add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identity), critical=False
        )
        .sign(issuer_key, hashes.SHA256())
    )
    write_private(authority_key, _pem(issuer_key))
    write_private(found.authority, authority.public_bytes(serialization.Encoding.PEM))
    write_private(found.key, _pem(key))
    write_private(found.certificate, certificate.public_bytes(serialization.Encoding.PEM))


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now_s: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_at(now_s) - timedelta(hours=1))
        .not_valid_after(_at(now_s) + timedelta(days=VALID_DAYS))
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _at(now_s: float) -> datetime:
    return datetime.fromtimestamp(now_s, UTC)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
