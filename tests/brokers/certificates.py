"""A certificate authority for one test run, and what it signs."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from .broker import HOST


@dataclass(frozen=True)
class Certificates:
    """PEM files: the authority's certificate, and a certificate for 127.0.0.1 (server and client) with its key."""

    ca: Path
    cert: Path
    key: Path


def certificates(folder: Path, *, name: str = HOST, until: timedelta = timedelta(days=1)) -> Certificates:
    """Make an authority and one certificate in `folder`, for `name`, valid for a day or `until` from now on."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test authority {folder.name}")])
    ca = (
        _builder(authority, authority, ca_key)
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    )
    host = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    other = x509.IPAddress(ipaddress.ip_address(HOST)) if name == HOST else x509.DNSName(name)
    leaf = (
        _builder(host, authority, key)
        .not_valid_after(datetime.now(UTC) + until)
        .add_extension(x509.SubjectAlternativeName([other]), False)
    )
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificates(ca=folder / "ca.pem", cert=folder / "cert.pem", key=folder / "key.pem")
    for path, builder in ((made.ca, ca), (made.cert, leaf)):
        path.write_bytes(builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=2))
    )
