"""Signs a repository's statement, and checks signatures: DSSE envelopes with Ed25519.

DSSE (https://github.com/secure-systems-lab/dsse/blob/master/protocol.md) signs the exact bytes of a
payload with its type, in the encoding that the protocol calls PAE.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dependencies import require
from pipeline.errors import RepositoryError, UsageError
from pipeline.provenance.statement import APART, FILE_NAME, PREDICATE_TYPE, STATEMENT_TYPE
from pipeline.reading.json_text import parse_json, read_json
from pipeline.store.artifact import ENVELOPE, WARNING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

PAYLOAD_TYPE = "application/vnd.in-toto+json"
EXTRA = "sign"


def pre_authentication_encoding(kind: str, payload: bytes) -> bytes:
    """Encodes a payload and its type as the bytes that are signed."""
    name = kind.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


def sign(repository: Path, manifest: Mapping[str, Any], key: Path) -> Path:
    """Writes the signed statement beside the statement; an earlier one is replaced.

    Args:
        repository: A deployed repository, whose files are those of its manifest.
        manifest: Its manifest.
        key: PEM of an Ed25519 private key without a password.

    Returns:
        The file.

    Raises:
        UsageError: The key cannot be used.
        RepositoryError: The repository has no statement, or was not released.
        MissingDependencyError: cryptography is not installed.
    """
    if warning := manifest.get(WARNING):
        raise RepositoryError(
            "a repository that was not released is not signed",
            where=str(repository),
            why=str(warning),
            fix="Run its recipe until verify passes, and sign what is deployed then",
        )
    private = _private_key(key)
    if FILE_NAME not in manifest["files"]:
        raise _no_statement(repository)
    payload = (repository / FILE_NAME).read_bytes()
    signature = private.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [
            {
                "keyid": key_id(private.public_key()),
                "sig": base64.b64encode(signature).decode(),
            }
        ],
    }
    path = repository / ENVELOPE
    draft = path.with_name(f".{ENVELOPE}.new")
    draft.write_text(json.dumps(envelope) + "\n", encoding="utf-8")
    draft.replace(path)
    return path


def check_signature(repository: Path, manifest: Mapping[str, Any], key: Path) -> None:
    """Refuses a repository that the owner of a key did not sign, as it is.

    Args:
        repository: The repository, whose files were compared with the manifest.
        manifest: Its manifest.
        key: PEM of the Ed25519 public key.

    Raises:
        UsageError: The key cannot be used.
        RepositoryError: There is no signature, it is another key's, or what was signed is another
            repository.
        MissingDependencyError: cryptography is not installed.
    """
    public = _public_key(key)
    payload = _signed_payload(repository, public, key)
    entry = manifest["files"].get(FILE_NAME, {})
    if hashlib.sha256(payload).hexdigest() != entry.get("sha256"):
        raise _refused(repository, "What was signed is another statement than the repository's own")
    signed = _subjects(repository, payload)
    present = {
        name: entry["sha256"] for name, entry in manifest["files"].items() if name not in APART
    }
    different = sorted(
        name for name in signed.keys() | present.keys() if signed.get(name) != present.get(name)
    )
    if different:
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise _refused(
            repository, f"{different[0]}{more} differs from what was signed, or is not part of it"
        )


def key_id(public: Ed25519PublicKey) -> str:
    """Names a key: the SHA-256 of its SubjectPublicKeyInfo in DER."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _signed_payload(repository: Path, public: Ed25519PublicKey, key: Path) -> bytes:
    from cryptography.exceptions import InvalidSignature

    path = repository / ENVELOPE
    try:
        envelope = read_json(path)
        kind, signatures = envelope["payloadType"], envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        candidates = [base64.b64decode(one["sig"], validate=True) for one in signatures]
    except FileNotFoundError:
        raise RepositoryError(
            "the repository is not signed",
            where=str(repository),
            why=f"There is no {ENVELOPE} in it, and --require-provenance asks for one",
            fix="Sign it where it was built: trtllm-pipeline sign REPOSITORY --key PRIVATE.pem",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, binascii.Error) as error:
        raise _refused(repository, f"{ENVELOPE} is no DSSE envelope") from error
    if kind != PAYLOAD_TYPE:
        raise _refused(repository, f"{ENVELOPE} signs something else than an in-toto statement")
    encoded = pre_authentication_encoding(kind, payload)
    for candidate in candidates:
        try:
            public.verify(candidate, encoded)
        except InvalidSignature:
            continue
        return payload
    raise _refused(repository, f"No signature in {ENVELOPE} was made with the key of {key}")


def _subjects(repository: Path, payload: bytes) -> dict[str, str]:
    try:
        content = parse_json(payload.decode())
        if (content["_type"], content["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError("another kind of statement")
        return {item["name"]: item["digest"]["sha256"] for item in content["subject"]}
    except (ValueError, KeyError, TypeError) as error:
        raise _refused(
            repository, "What was signed is no provenance statement of this kind"
        ) from error


def _refused(repository: Path, why: str) -> RepositoryError:
    return RepositoryError(
        "the repository's provenance does not hold",
        where=str(repository),
        why=why,
        fix="Copy the repository again from where it was signed, or give the right public key; do "
        "not serve it before you know what happened",
    )


def _no_statement(repository: Path) -> RepositoryError:
    return RepositoryError(
        "the repository has no statement of its provenance",
        where=str(repository),
        why="It was built by an earlier version",
        fix="Run its recipe again",
    )


def _private_key(path: Path) -> Ed25519PrivateKey:
    require("cryptography", EXTRA)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise _unusable(path, "private", error) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _unusable(path, "private")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    require("cryptography", EXTRA)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise _unusable(path, "public", error) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _unusable(path, "public")
    return key


def _unusable(path: Path, kind: str, error: Exception | None = None) -> UsageError:
    why = f"It is no PEM file of an Ed25519 {kind} key without a password"
    if isinstance(error, OSError):
        why = error.strerror or str(error)
    return UsageError(
        f"the {kind} key cannot be used",
        where=str(path),
        why=why,
        fix="Make a pair: openssl genpkey -algorithm ed25519 -out private.pem && "
        "openssl pkey -in private.pem -pubout -out public.pem",
    )
