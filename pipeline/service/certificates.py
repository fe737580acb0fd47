"""Makes an authority and certificates of a server and a client, to try mutual TLS with."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.dependencies import require
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, GeneralName, Name

EXTRA = "sign"
HERE = ("localhost", "127.0.0.1", "::1")
AUTHORITY = "ca.pem"
NAMES = (AUTHORITY, "server.pem", "server.key", "client.pem", "client.key")
LONGEST_DAYS = 397
"""What browsers and operating systems take of a server's certificate."""


def make_certificates(folder: Path, names: Sequence[str] = (), days: int = 7) -> list[Path]:
    """Writes the authority's certificate, and certificate and key of a server and of a client.

    The authority's key is forgotten at once: nobody can make more of them.

    Args:
        folder: Is created; files that are there are not replaced.
        names: Host names and addresses of the server besides those of this machine.
        days: How long they are valid.

    Returns:
        The files, in the order of :data:`NAMES`.

    Raises:
        UsageError: A file is there already or cannot be written, or a name cannot stand in a
            certificate.
        MissingDependencyError: cryptography is not installed.
    """
    require("cryptography", EXTRA)
    there = [name for name in NAMES if (folder / name).exists()]
    if there:
        raise UsageError(
            f"there is a {there[0]} already",
            where=str(folder),
            fix="Name another folder, or remove what is in this one",
        )
    alternatives = [_alternative(name) for name in dict.fromkeys((*HERE, *names))]
    files = _signed(alternatives, days)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in files.items():
            _write(folder / name, content, 0o600 if name.endswith(".key") else 0o644)
    except OSError as error:
        raise UsageError(
            "the certificates cannot be written",
            where=str(folder),
            why=error.strerror or str(error),
            fix="Name a folder that this user can write to",
        ) from error
    return [folder / name for name in NAMES]


def _write(path: Path, content: bytes, mode: int) -> None:
    # Closed to others from its first moment.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def _alternative(name: str) -> GeneralName:
    from cryptography import x509

    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise UsageError(
            "this name cannot stand in a certificate",
            where=f"--name {name}",
            why=str(error),
            fix="Give a host name of ASCII letters, digits, dots and dashes, or an IP address",
        ) from error


def _signed(alternatives: Sequence[GeneralName], days: int) -> dict[str, bytes]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    root = ec.generate_private_key(ec.SECP256R1())
    issuer = _name("trtllm-pipeline test authority")
    rights = [
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (_usage(signs=True), True),
    ]
    authority = _certificate(issuer, issuer, root, root, days=days, extensions=rights)
    files = {AUTHORITY: _pem(authority)}
    for name, purpose, more in (
        (
            "server",
            ExtendedKeyUsageOID.SERVER_AUTH,
            [(x509.SubjectAlternativeName(alternatives), False)],
        ),
        ("client", ExtendedKeyUsageOID.CLIENT_AUTH, []),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        extensions = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(signs=False), True),
            (x509.ExtendedKeyUsage([purpose]), False),
            *more,
        ]
        subject = _name(f"trtllm-pipeline test {name}")
        certificate = _certificate(subject, issuer, key, root, days=days, extensions=extensions)
        files |= {f"{name}.pem": _pem(certificate), f"{name}.key": _private_pem(key)}
    return files


def _name(text: str) -> Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs: bool) -> object:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _certificate(
    subject: Name,
    issuer: Name,
    key: EllipticCurvePrivateKey,
    root: EllipticCurvePrivateKey,
    *,
    days: int,
    extensions: Sequence[tuple[object, bool]],
) -> Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of two machines differ a little.
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False
        )
    )
    for extension, critical in extensions:
        assert isinstance(extension, x509.ExtensionType)
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(root, hashes.SHA256())


def _pem(certificate: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _private_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
