"""Mutual TLS between the client and the real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.triton.server import TritonServer
from trtllm_client import Client, ClientError, ConnectionFailed, Tls

from .conftest import mutual_tls


def test_mutual_tls(repository: Path, certificates: Path) -> None:
    cert, key = certificates / "cert.pem", certificates / "key.pem"
    with TritonServer(repository, flags=mutual_tls(certificates)) as server:
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
