"""Mutual TLS between the client and the real server."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.triton.server import TritonServer
from trtllm_client import Client, ClientError, ConnectionFailed, Tls

if shutil.which("openssl") is None:
    pytest.skip("openssl makes the certificates and is not here", allow_module_level=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One self-signed certificate for localhost, used as authority, server and client."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


def test_mutual_tls(repository: Path, certificates: Path) -> None:
    cert, key = certificates / "cert.pem", certificates / "key.pem"
    flags = [
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={cert}",
        f"--grpc-server-key={key}",
        f"--grpc-root-cert={cert}",
    ]
    with TritonServer(repository, flags=flags) as server:
        tls = Tls(root_certificates=cert, certificate_chain=cert, private_key=key)
        with Client(f"grpcs://{server.grpc_url}", tls=tls) as client:
            assert client.generate("Once there was a girl", max_tokens=8).text
        for stranger in (
            Client(f"grpcs://{server.grpc_url}", tls=Tls(root_certificates=cert), timeout=20),
            Client(server.grpc_url, timeout=20),
        ):
            with stranger, pytest.raises(ClientError, match=server.grpc_url) as caught:
                stranger.generate("Once", max_tokens=2)
            assert isinstance(caught.value, ConnectionFailed)
