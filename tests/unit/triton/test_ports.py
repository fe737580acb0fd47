from __future__ import annotations

import re
import socket

import pytest

from pipeline.errors import ServerError
from pipeline.triton.ports import local_address, reserve


def test_picks_different_free_ports() -> None:
    ports = reserve("127.0.0.1", {"gRPC": 0, "HTTP": 0, "metrics": 0})
    assert list(ports) == ["gRPC", "HTTP", "metrics"]
    assert len(set(ports.values())) == 3
    # Below Linux's default range for outgoing connections, which could take one meanwhile.
    assert all(1024 < port < 32768 for port in ports.values())


def test_port_in_use_is_named_with_the_option_that_changes_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"the gRPC port {port} is in use") as caught:
            reserve("127.0.0.1", {"gRPC": port})
    assert "--grpc-port" in str(caught.value)
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert caught.value.exit_code == 6


def test_a_port_wanted_twice() -> None:
    port = reserve("127.0.0.1", {"HTTP": 0})["HTTP"]
    with pytest.raises(ServerError, match=f"the HTTP port {port} is in use"):
        reserve("127.0.0.1", {"gRPC": port, "HTTP": port})


@pytest.mark.parametrize(("host", "port"), [("203.0.113.7", 20001), ("127.0.0.1", 70000)])
def test_impossible_address(host: str, port: int) -> None:
    with pytest.raises(ServerError, match=re.escape(f"{host}:{port}: the gRPC port")) as caught:
        reserve(host, {"gRPC": port})
    assert "Use an address of this machine" in str(caught.value)


def test_addresses() -> None:
    assert local_address("0.0.0.0") == "127.0.0.1"
    assert local_address("192.0.2.1") == "192.0.2.1"
