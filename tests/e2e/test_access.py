"""Mutual TLS and the key of serve, on the real server with the helper's certificates."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from pipeline.triton.guardian import children

from ..conftest import PROJECT
from .conftest import Cli

KEY = "SERVING_KEY"
HEADER = "triton-grpc-protocol-api-key"
# What an operator's environment may hold, and no process or file of the server may.
SECRETS = {"HF_TOKEN": "hf_", "AWS_SECRET_ACCESS_KEY": "aws", "SOME_PASSWORD": "pw"}


@dataclass(frozen=True)
class Served:
    """A server that ``serve`` started.

    Attributes:
        document: What it printed.
        certificates: Folder of the helper's.
        key: What requests have to send.
        secrets: All values that must not be seen.
        process: The supervisor.
        folder: Where all its files are.
    """

    document: dict[str, str]
    certificates: Path
    key: str
    secrets: tuple[str, ...]
    process: int
    folder: Path

    @property
    def address(self) -> str:
        return self.document["grpc"].removeprefix("grpcs://")

    def options(self, certificates: Path | None = None) -> list[str]:
        folder = certificates or self.certificates
        return [
            *("--url", self.document["grpc"], "--tls-root", str(self.certificates / "ca.pem")),
            *("--tls-cert", str(folder / "client.pem"), "--tls-key", str(folder / "client.key")),
        ]


@contextmanager
def serving(arguments: list[str], environment: dict[str, str]) -> Iterator[tuple[int, Any]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "serve", *arguments, "--json"],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout
        text = ""
        while not text.rstrip().endswith("}"):
            line = process.stdout.readline().decode()
            assert line, "it ended before it was ready"
            text += line
        yield process.pid, json.loads(text)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        if process.stdout:
            process.stdout.close()


@pytest.fixture(scope="module")
def served(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("cryptography")
    folder = tmp_path_factory.mktemp("access")
    certificates = folder / "certificates"
    key = f"k:=/{secrets.token_hex(16)}"
    hidden = {name: f"{word}{secrets.token_hex(12)}" for name, word in SECRETS.items()}
    environment = {**os.environ, **hidden, KEY: key, "TMPDIR": str(folder)}
    run = [sys.executable, "-m", "pipeline", "certificates", str(certificates)]
    subprocess.run(run, cwd=PROJECT, check=True, capture_output=True)
    pem = {name: str(certificates / f"{name}.pem") for name in ("server", "ca")}
    arguments = [
        *(str(repository), "--grpc-port", "0", "--metrics-port", "0"),
        *("--tls-cert", pem["server"], "--tls-key", str(certificates / "server.key")),
        *("--tls-client-ca", pem["ca"], "--key-from", KEY, "--log", str(folder / "triton.log")),
    ]
    with serving(arguments, environment) as (pid, document):
        yield Served(document, certificates, key, (*hidden.values(), key), pid, folder)


def test_the_helpers_keys_are_closed_and_openssl_takes_its_certificates(served: Served) -> None:
    folder = served.certificates
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for purpose in ("server", "client"):
        command = ["openssl", "verify", "-x509_strict", "-purpose", f"ssl{purpose}", "-CAfile"]
        command += [str(folder / "ca.pem"), str(folder / f"{purpose}.pem")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    text = subprocess.run(
        ["openssl", "x509", "-in", str(folder / "server.pem"), "-noout", "-ext", "subjectAltName"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "DNS:localhost, IP Address:127.0.0.1" in text
    client = str(folder / "client.pem")
    wrong = [
        "openssl",
        "verify",
        "-purpose",
        "sslserver",
        "-CAfile",
        str(folder / "ca.pem"),
        client,
    ]
    assert subprocess.run(wrong, capture_output=True, check=False).returncode != 0


def first_bytes_for_openssl(served: Served, *certificate: str) -> bytes:
    """What the server says first to ``openssl s_client``; nothing where it hangs up instead."""
    command = ["openssl", "s_client", "-connect", served.address, "-alpn", "h2", "-brief"]
    command += ["-ign_eof", "-verify_return_error"]
    command += ["-CAfile", str(served.certificates / "ca.pem"), *certificate]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdin
            assert process.stdout
            # The preface of HTTP/2 with an empty SETTINGS frame, which every server answers.
            process.stdin.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            process.stdin.flush()
            return process.stdout.read(9)
        finally:
            process.kill()


def strangers(folder: Path) -> tuple[list[str], list[str]]:
    """Certificates by another authority, and one by none, that openssl makes."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", "/CN=stranger", "-days", "2"]
    command += ["-keyout", str(folder / "client.key"), "-out", str(folder / "client.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return ["-cert", str(folder / "client.pem")], ["-key", str(folder / "client.key")]


def test_openssl_is_let_in_with_the_right_certificate_alone(served: Served, tmp_path: Path) -> None:
    own = ["-cert", str(served.certificates / "client.pem")]
    own += ["-key", str(served.certificates / "client.key")]
    answer = first_bytes_for_openssl(served, *own)
    assert len(answer) == 9
    assert answer[3] == 4, "the first frame of HTTP/2 is SETTINGS"
    assert first_bytes_for_openssl(served) == b""
    cert, key = strangers(tmp_path)
    assert first_bytes_for_openssl(served, *cert, *key) == b""


def channel(served: Served, folder: Path, name: str = "client") -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        (served.certificates / "ca.pem").read_bytes(),
        (folder / f"{name}.key").read_bytes(),
        (folder / f"{name}.pem").read_bytes(),
    )
    return grpc.secure_channel(served.address, credentials)


READY = "/inference.GRPCInferenceService/ServerReady"


def test_an_expired_certificate_is_refused(served: Served, tmp_path: Path) -> None:
    """Its authority is trusted by a server of its own, whose answer to a valid one is the proof."""
    ca = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ]
    ca += ["-subj", "/CN=authority", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem"]
    subprocess.run(ca, check=True, capture_output=True, cwd=tmp_path)
    for name, days in (("client", "1"), ("expired", "-1")):
        ask = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        ask += ["-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr"]
        subprocess.run(ask, check=True, capture_output=True, cwd=tmp_path)
        give = [
            "openssl",
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
        ]
        give += ["-CAcreateserial", "-days", days, "-out", f"{name}.pem"]
        subprocess.run(give, check=True, capture_output=True, cwd=tmp_path)
    from pipeline.triton.access import ServerTls
    from pipeline.triton.server import TritonServer
    from tests.integration.echo_models import write_counter

    models = write_counter(tmp_path / "models", "counter")
    server_pem, server_key = (served.certificates / f"server.{kind}" for kind in ("pem", "key"))
    tls = ServerTls(server_pem, server_key, tmp_path / "ca.pem")
    with TritonServer(models, http=False, tls=tls) as server:
        its = Served({"grpc": server.grpc_url}, served.certificates, "", (), 0, tmp_path)
        with channel(its, tmp_path) as valid:
            assert valid.unary_unary(READY)(b"", timeout=60) == b"\x08\x01"
        with channel(its, tmp_path, "expired") as expired, pytest.raises(grpc.RpcError) as caught:
            expired.unary_unary(READY)(b"", timeout=60)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_grpcs_own_client_needs_certificate_and_key(served: Served, tmp_path: Path) -> None:
    with channel(served, served.certificates) as right:
        assert right.unary_unary(READY)(b"", timeout=60) == b"\x08\x01"
    strangers(tmp_path)
    with channel(served, tmp_path) as wrong, pytest.raises(grpc.RpcError) as caught:
        wrong.unary_unary(READY)(b"", timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_each_api_is_closed_open_or_asks_for_the_key(served: Served) -> None:
    folder = served.certificates
    client = grpcclient.InferenceServerClient(
        served.address,
        ssl=True,
        root_certificates=str(folder / "ca.pem"),
        private_key=str(folder / "client.key"),
        certificate_chain=str(folder / "client.pem"),
    )
    right, wrong = {HEADER: served.key}, {HEADER: "not this one at all"}
    guarded = {
        "metadata": client.get_server_metadata,
        "statistics": client.get_inference_statistics,
        "config": lambda headers: client.get_model_config("tensorrt_llm", headers=headers),
        "inference": lambda headers: client.infer("postprocessing", [], headers=headers),
    }
    closed = (
        client.get_system_shared_memory_status,
        client.get_model_repository_index,
        client.get_log_settings,
        client.get_trace_settings,
        lambda headers: client.load_model("tensorrt_llm", headers=headers),
    )
    assert client.is_server_ready()
    for name, call in guarded.items():
        for headers in (None, wrong):
            with pytest.raises(InferenceServerException, match=f"restricted.*'{HEADER}'"):
                call(headers=headers)
        if name == "inference":
            with pytest.raises(
                InferenceServerException, match=r"expected .*2.* inputs?|expected number of inputs"
            ):
                call(headers=right)
        else:
            call(headers=right)
    for call in closed:
        with pytest.raises(InferenceServerException, match=r"restricted.*-closed'"):
            call(headers=right)
    client.close()


def test_the_commands_work_with_both_and_nothing_secret_is_left_anywhere(
    served: Served, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, served.key)
    given = [*served.options(), "--key-from", KEY]
    junit = str(served.folder / "verify.xml")
    text = cli("generate", *given, "--max-tokens", "4", "Once there was a").stdout
    verified = cli("verify", *given, "--only", "readiness,stop_words,log_probs", "--junit", junit)
    benched = cli("bench", *given, "--requests", "2", "--rounds", "1", "--output-tokens", "4",
                  "--concurrency", "1")  # fmt: skip
    refused = cli("generate", *served.options(), "Once", check=False)
    assert refused.returncode != 0
    assert HEADER in refused.stderr
    (served.folder / "said").write_text(
        "".join(done.stdout + done.stderr for done in (verified, benched, refused)) + text
    )
    with urllib.request.urlopen(served.document["metrics"], timeout=60) as page:
        (served.folder / "metrics").write_bytes(page.read())
    seen = {f"{path}": path.read_bytes() for path in served.folder.rglob("*") if path.is_file()}
    (guardian,) = children(served.process)
    (server,) = children(guardian)
    for pid in (guardian, server, *children(server)):
        seen[f"command line of {pid}"] = Path(f"/proc/{pid}/cmdline").read_bytes()
        seen[f"environment of {pid}"] = Path(f"/proc/{pid}/environ").read_bytes()
    seen["command line of serve"] = Path(f"/proc/{served.process}/cmdline").read_bytes()
    assert b"--grpc-restricted-protocol=hidden" in seen[f"command line of {server}"]
    assert len([name for name in seen if name.startswith("environment")]) >= 6
    for secret in served.secrets:
        assert [name for name, text in seen.items() if secret.encode() in text] == []


def test_what_the_server_writes_is_closed_to_others(served: Served) -> None:
    others = stat.S_IRWXO | stat.S_IRWXG
    private = [path for path in served.folder.iterdir() if path.name.startswith("tritonserver-")]
    assert private
    written = [*private, served.folder / "triton.log"]
    (guardian,) = children(served.process)
    (server,) = children(guardian)
    command = Path(f"/proc/{server}/cmdline").read_bytes().decode()
    (prefix,) = re.findall(r"shm-region-prefix-name=(\w+)", command)
    regions = [*Path("/dev/shm").glob(f"{prefix}*")]
    assert len(regions) >= 4
    for path in (*written, *regions):
        assert stat.S_IMODE(path.stat().st_mode) & others == 0, path


def test_http_is_off_unless_a_port_is_named(served: Served) -> None:
    assert set(served.document) == {"grpc", "metrics", "ready_seconds"}
    (guardian,) = children(served.process)
    (server,) = children(guardian)
    assert b"--allow-http=false" in Path(f"/proc/{server}/cmdline").read_bytes().split(b"\0")
