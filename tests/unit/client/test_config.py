"""Addresses, limits and certificates."""

from __future__ import annotations

import math
import shutil
import subprocess

import grpc
import pytest

from tests.unit.client.fake_triton import FakeTriton, piece
from trtllm_client import Client, ConnectionFailed, InvalidRequest, Tls
from trtllm_client._config import parse_url


@pytest.mark.parametrize(
    ("url", "target", "secure"),
    [
        ("127.0.0.1:8001", "127.0.0.1:8001", False),
        ("grpc://host.example:8001", "host.example:8001", False),
        ("grpcs://host.example:8001/", "host.example:8001", True),
        ("[::1]:8001", "[::1]:8001", False),
    ],
)
def test_addresses(url, target, secure):
    endpoint = parse_url(url)
    assert (endpoint.target, endpoint.secure) == (target, secure)
    assert endpoint.url == f"{'grpcs' if secure else 'grpc'}://{target}"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://localhost:8000", "scheme http:// is not gRPC.*8001"),
        ("localhost", "not a server address.*host:port"),
        ("localhost:", "not a server address"),
        ("localhost:0", "not a server address"),
        ("localhost:65536", "not a server address"),
        ("", "not a server address"),
        ("grpc://a b:1", "not a server address"),
        ("grpc://user@x:y:1", "not a server address"),
    ],
)
def test_other_addresses_are_refused(url, message):
    with pytest.raises(InvalidRequest, match=message.split(".*", maxsplit=1)[0]) as caught:
        Client(url)
    assert message.split(".*")[-1] in str(caught.value)


def test_tls_options_with_a_plain_address_contradict_each_other():
    with pytest.raises(InvalidRequest, match="need a TLS address"):
        Client("grpc://localhost:8001", tls=Tls())


@pytest.mark.parametrize("name", ["timeout", "stall_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), 1e12, 10**400])
def test_limits_must_be_above_zero_and_sane(name, value):
    with pytest.raises(InvalidRequest, match=f"{name} must be above 0 seconds"):
        Client("localhost:8001", **{name: value})


@pytest.mark.parametrize("name", ["timeout", "stall_timeout"])
@pytest.mark.parametrize("value", ["3", True, [1]])
def test_limits_must_be_numbers(name, value):
    with pytest.raises(InvalidRequest, match=f"{name} must be a number of seconds"):
        Client("localhost:8001", **{name: value})


def test_infinity_is_no_limit():
    with FakeTriton(lambda *_: [piece("Once", final=True)]) as server:
        with Client(server.url, timeout=math.inf, stall_timeout=math.inf) as client:
            assert client.generate("Hi").text == "Once"
        with Client(server.url, timeout=0.001) as client:
            assert client.stream("Hi", timeout=math.inf).completion().text == "Once"


@pytest.mark.parametrize(
    ("headers", "what"),
    [
        ({"naïve": "x"}, "name"),
        ({"two words": "x"}, "name"),
        ({"": "x"}, "name"),
        ({"authorization": "Bearer é"}, "value"),
        ({"authorization": "two\nlines"}, "value"),
        ({"authorization": 7}, "value"),
    ],
)
def test_headers_that_grpc_cannot_send_are_refused_without_their_value(headers, what):
    with pytest.raises(InvalidRequest, match=f"has a {what} that gRPC cannot send") as caught:
        Client("localhost:8001", headers=headers)
    assert "Bearer" not in str(caught.value)


def test_certificates_that_cannot_be_read(tmp_path):
    with pytest.raises(InvalidRequest, match="cannot be read"):
        Client("grpcs://localhost:1", tls=Tls(root_certificates=tmp_path / "none.pem"))
    for name, content in (
        ("der.crt", b"\x30\x82"),
        ("torn.pem", b"-----BEGIN CERTIFICATE-----\nMIIB"),
        ("bent.pem", b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidRequest, match="holds no PEM certificate") as caught:
            Client("grpcs://localhost:1", tls=Tls(root_certificates=tmp_path / name))
        assert caught.value.where == str(tmp_path / name)
    with pytest.raises(InvalidRequest, match="needs its key"):
        Client("grpcs://localhost:1", tls=Tls(private_key="key.pem"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A self-signed certificate for triton.test and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    subject = ["-subj", "/CN=triton.test", "-addext", "subjectAltName=DNS:triton.test"]
    subprocess.run(
        [openssl, *command.split(), "-keyout", str(key), "-out", str(certificate), *subject],
        check=True,
        capture_output=True,
    )
    return certificate, key


def test_a_key_that_cannot_be_used_is_named(authority, tmp_path):
    certificate, key = authority
    openssl = shutil.which("openssl")
    other, locked, bent = tmp_path / "other.pem", tmp_path / "locked.pem", tmp_path / "bent.pem"
    curve = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256"
    for command in (
        f"genpkey {curve} -out {other}",
        f"pkey -in {key} -aes128 -passout pass:secret -out {locked}",
    ):
        subprocess.run([openssl, *command.split()], check=True, capture_output=True)
    bent.write_text(key.read_text()[:80])
    for wrong, message in (
        (other, "not the PEM key of"),
        (bent, "not the PEM key of"),
        (locked, "the key is encrypted"),
    ):
        with pytest.raises(InvalidRequest, match=message) as caught:
            Client("grpcs://localhost:1", tls=Tls(certificate, certificate, wrong))
        assert caught.value.where == str(wrong)


def _serve(authority, *, mutual=False):
    certificate, key = (path.read_bytes() for path in authority)
    credentials = grpc.ssl_server_credentials(
        [(key, certificate)], certificate if mutual else None, require_client_auth=mutual
    )
    return FakeTriton(lambda *_: [piece("Once", final=True)], credentials=credentials)


def test_tls(authority):
    tls = Tls(root_certificates=authority[0], server_name="triton.test")
    with _serve(authority) as server:
        with Client(server.url, tls=tls) as client:
            assert client.url == f"grpcs://{server.url}"
            assert client.generate("Hi").text == "Once"
        with (
            Client(f"grpcs://{server.url}") as stranger,
            pytest.raises(ConnectionFailed, match="no Triton server answers here"),
        ):
            stranger.generate("Hi")
        with (
            Client(server.url) as plain,
            pytest.raises(ConnectionFailed, match="no Triton server answers here"),
        ):
            plain.generate("Hi")


def test_mutual_tls(authority):
    certificate, key = authority
    server_only = Tls(root_certificates=certificate, server_name="triton.test")
    both = Tls(certificate, certificate, key, "triton.test")
    with _serve(authority, mutual=True) as server:
        with Client(server.url, tls=both) as client:
            assert client.generate("Hi").text == "Once"
        with Client(server.url, tls=server_only) as client:
            assert not client.is_ready()
