"""Signatures over a repository's statement, judged by openssl and by securesystemslib."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from pipeline.errors import PipelineError, RepositoryError, UsageError
from pipeline.provenance.envelope import check_signature, sign
from pipeline.provenance.history import package_url, step_of
from pipeline.provenance.statement import FILE_NAME, statement
from pipeline.serving import check_custody, check_provenance
from pipeline.store.artifact import ENVELOPE, MANIFEST, WARNING
from pipeline.store.digests import digest_of, file_digest


def repository(folder: Path, text: str = "one") -> Path:
    """What the repository stage publishes, as far as its manifest and statement go."""
    model = folder / "model" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text(text)
    step = step_of(
        {
            "stage": "source",
            "digest": "d",
            "files": {"model.safetensors": {"sha256": "ab" * 32}},
            "material": {"material": {"directory": "/home/someone/model"}},
        }
    )
    content = statement([step], {"model/1/model.py": file_digest(model)}, version="1")
    (folder / FILE_NAME).write_text(json.dumps(content))
    manifest(folder)
    return folder


def manifest(folder: Path, **more: Any) -> None:
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (MANIFEST, ENVELOPE)
    )
    files = {
        name: {"sha256": file_digest(folder / name), "bytes": (folder / name).stat().st_size}
        for name in names
    }
    content = {"schema": 1, "created": "", "seconds": 0, "facts": {}, "files": files}
    digest = digest_of({"files": files, "facts": {}})
    (folder / MANIFEST).write_text(json.dumps(content | {"digest": digest} | more))


def pair(folder: Path, name: str, algorithm: str = "ed25519") -> tuple[Path, Path]:
    """A key pair that openssl made."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    for command in (
        ["genpkey", "-algorithm", algorithm, "-out", str(private)],
        ["pkey", "-in", str(private), "-pubout", "-out", str(public)],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    return private, public


@pytest.fixture(autouse=True)
def _openssl() -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which judges, is not here")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return pair(tmp_path, "signer")


@pytest.fixture
def signed(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    folder = repository(tmp_path / "signed")
    sign(folder, check_custody(folder), keys[0])
    return folder


def test_openssl_takes_the_signature_over_the_encoding_of_the_protocol(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    envelope = json.loads((signed / ENVELOPE).read_text())
    payload = base64.b64decode(envelope["payload"])
    assert payload == (signed / FILE_NAME).read_bytes()
    kind = b"application/vnd.in-toto+json"
    encoded = b"DSSEv1 28 " + kind + b" " + str(len(payload)).encode() + b" " + payload
    (tmp_path / "encoded").write_bytes(encoded)
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    verify = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(keys[1]), "-rawin"]
    verify += ["-in", str(tmp_path / "encoded"), "-sigfile", str(tmp_path / "sig")]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0
    (tmp_path / "encoded").write_bytes(encoded + b" ")
    assert subprocess.run(verify, capture_output=True, check=False).returncode != 0


def test_another_implementation_of_the_protocol_takes_the_envelope(
    signed: Path, keys: tuple[Path, Path]
) -> None:
    envelope = Envelope.from_dict(json.loads((signed / ENVELOPE).read_text()))
    public = load_pem_public_key(keys[1].read_bytes())
    # It looks for the key by its name, which each implementation makes in its own way.
    (name,) = envelope.signatures
    accepted = envelope.verify([SSlibKey.from_crypto(public, keyid=name)], 1)
    assert list(accepted) == [name]
    assert envelope.payload_type == "application/vnd.in-toto+json"


def test_what_was_signed_is_served(signed: Path, keys: tuple[Path, Path]) -> None:
    check_provenance(signed, check_custody(signed), keys[1])
    # Where nobody asks for a signature it is not in the way.
    check_provenance(signed, check_custody(signed), None)


def _changed(folder: Path) -> None:
    (folder / "model" / "1" / "model.py").write_text("two")
    manifest(folder)


def _changed_with_its_statement(folder: Path) -> None:
    (folder / "model" / "1" / "model.py").write_text("two")
    text = (folder / FILE_NAME).read_text()
    old, new = (hashlib.sha256(word).hexdigest() for word in (b"one", b"two"))
    (folder / FILE_NAME).write_text(text.replace(old, new))
    manifest(folder)


def _added(folder: Path) -> None:
    (folder / "model" / "1" / "more.py").write_text("two")
    manifest(folder)


def _removed(folder: Path) -> None:
    shutil.rmtree(folder / "model")
    manifest(folder)


def _unsigned(folder: Path) -> None:
    (folder / ENVELOPE).unlink()


def _no_signatures(folder: Path) -> None:
    content = json.loads((folder / ENVELOPE).read_text())
    (folder / ENVELOPE).write_text(json.dumps(content | {"signatures": []}))


def _another_payload(folder: Path) -> None:
    content = json.loads((folder / ENVELOPE).read_text())
    payload = base64.b64decode(content["payload"]).replace(b"ab" * 32, b"cd" * 32)
    content["payload"] = base64.b64encode(payload).decode()
    (folder / ENVELOPE).write_text(json.dumps(content))


def _another_type(folder: Path) -> None:
    content = json.loads((folder / ENVELOPE).read_text())
    (folder / ENVELOPE).write_text(json.dumps(content | {"payloadType": "text/plain"}))


def _no_json(folder: Path) -> None:
    (folder / ENVELOPE).write_text("{")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_changed, "model/1/model.py differs from what was signed"),
        (_changed_with_its_statement, "another statement than the repository's own"),
        (_added, "model/1/more.py differs from what was signed, or is not part of it"),
        (_removed, "model/1/model.py differs from what was signed"),
        (_unsigned, "the repository is not signed"),
        (_no_signatures, "No signature in provenance.dsse.json was made with the key"),
        (_another_payload, "No signature in provenance.dsse.json was made with the key"),
        (_another_type, "signs something else than an in-toto statement"),
        (_no_json, "is no DSSE envelope"),
    ],
)
def test_what_was_not_signed_is_refused(
    damage: Callable[[Path], None], why: str, signed: Path, keys: tuple[Path, Path]
) -> None:
    damage(signed)
    # The manifest was changed with the files, so that it alone finds nothing.
    found = check_custody(signed)
    with pytest.raises(RepositoryError, match=why) as caught:
        check_provenance(signed, found, keys[1])
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


def test_the_signature_of_another_repository_is_refused(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    other = repository(tmp_path / "other", "another model")
    shutil.copy(signed / ENVELOPE, other / ENVELOPE)
    with pytest.raises(RepositoryError, match="another statement than the repository's own"):
        check_signature(other, check_custody(other), keys[1])


def test_a_statement_that_is_signed_but_of_another_kind_is_refused(
    tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    folder = repository(tmp_path / "other")
    content = json.loads((folder / FILE_NAME).read_text())
    text = json.dumps(content | {"predicateType": "https://example.org/tested/v1"})
    (folder / FILE_NAME).write_text(text)
    manifest(folder)
    sign(folder, check_custody(folder), keys[0])
    with pytest.raises(RepositoryError, match="no provenance statement of this kind"):
        check_signature(folder, check_custody(folder), keys[1])


def test_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    _, stranger = pair(tmp_path, "stranger")
    with pytest.raises(RepositoryError, match=r"was made with the key of .*stranger"):
        check_signature(signed, check_custody(signed), stranger)


@pytest.mark.parametrize("kind", ["missing", "private", "x25519", "text"])
def test_keys_of_another_kind_are_told(
    kind: str, signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("no key")
    path = {
        "missing": tmp_path / "nowhere.pem",
        "private": keys[0],
        "x25519": pair(tmp_path, "x", "x25519")[1],
        "text": tmp_path / "text",
    }[kind]
    with pytest.raises(UsageError, match="the public key cannot be used") as caught:
        check_signature(signed, check_custody(signed), path)
    assert "openssl genpkey -algorithm ed25519" in str(caught.value)
    with pytest.raises(UsageError, match="the private key cannot be used"):
        sign(signed, check_custody(signed), keys[1] if kind == "private" else path)


def test_only_what_was_released_is_signed(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder = repository(tmp_path / "failed")
    manifest(folder, **{WARNING: "verify failed"})
    with pytest.raises(PipelineError, match="not released is not signed"):
        sign(folder, check_custody(folder), keys[0])
    assert not (folder / ENVELOPE).exists()


def test_the_statement_tells_no_path_of_the_machine(signed: Path) -> None:
    text = (signed / FILE_NAME).read_text()
    assert "ab" * 32 in text
    assert "/home" not in text


def test_package_urls() -> None:
    # As the purl specification writes them for PyPI.
    assert package_url("nvidia_ModelOpt", "0.37.0") == "pkg:pypi/nvidia-modelopt@0.37.0"
    assert package_url("torch", "2.13.0+cpu") == "pkg:pypi/torch@2.13.0%2Bcpu"
