"""What ``serve`` says of certificates and keys that cannot be used, before anything starts."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from pipeline.cli.main import app
from pipeline.errors import UsageError
from pipeline.service.certificates import make_certificates
from pipeline.triton import veil
from pipeline.triton.access import KEY_HEADER, key_of
from pipeline.triton.ports import is_loopback
from tests.unit.test_launch import published


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder, ["gpu7.example.org", "10.1.2.3"], days=3)
    return folder


CERT, KEY = ("--tls-cert", "server.pem"), ("--tls-key", "server.key")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (CERT, "TLS needs the server's certificate and its key"),
        (("--tls-client-ca", "ca.pem"), "TLS needs the server's certificate and its key"),
        ((*CERT, "--tls-key", "client.key"), "certificate and key cannot be used"),
        ((*CERT, "--tls-key", "locked.key"), "certificate and key cannot be used"),
        ((*CERT, "--tls-key", "nowhere.key"), "No such file"),
        ((*CERT, *KEY, "--tls-client-ca", "server.key"), "clients' authority cannot be used"),
        ((*CERT, *KEY, "--host", "0.0.0.0", "--http-port", "8000"), "HTTP endpoint has no TLS"),
        (("--key-from", "NOT_SET_ANYWHERE"), "this variable is not in the environment"),
        (("--key-from", "SHORT_KEY"), "this variable holds no key"),
        (("--key-from", "GOOD_KEY", "--print", "command"), "does not go with --print command"),
    ],
)
def test_what_cannot_be_used_is_told(
    options: tuple[str, ...],
    said: str,
    certificates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository = published(tmp_path, "openvino")
    for path in certificates.iterdir():
        shutil.copy(path, tmp_path)
    lock = ["openssl", "pkey", "-in", "server.key", "-aes128", "-passout", "pass:x"]
    lock += ["-out", "locked.key"]
    subprocess.run(lock, check=True, cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHORT_KEY", "s3cret")
    monkeypatch.setenv("GOOD_KEY", "s3cret-of-sixteen-and-more")
    with pytest.raises(UsageError, match=said) as caught:
        app(["serve", str(repository), *options], standalone_mode=False)
    assert "s3cret" not in str(caught.value)


def test_a_gpus_repository_takes_neither(certificates: Path, tmp_path: Path) -> None:
    repository = published(tmp_path, "tensorrt")
    options = ["--tls-cert", str(certificates / "server.pem")]
    options += ["--tls-key", str(certificates / "server.key"), "--print", "command"]
    with pytest.raises(UsageError, match="are for repositories of the CPU"):
        app(["serve", str(repository), *options], standalone_mode=False)


def test_the_unit_names_the_variable_and_never_the_key(
    certificates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GOOD_KEY", "s3cret-of-sixteen-and-more")
    options = ["--tls-cert", str(certificates / "server.pem"), "--key-from", "GOOD_KEY"]
    options += ["--tls-key", str(certificates / "server.key"), "--print", "systemd"]
    app(["serve", str(published(tmp_path, "openvino")), *options], standalone_mode=False)
    text = capsys.readouterr().out
    assert "PassEnvironment=GOOD_KEY" in text
    assert " --key-from=GOOD_KEY" in text
    assert f"--tls-cert={certificates}/server.pem" in text
    assert "s3cret" not in text
    assert "--http-port" not in text


def test_the_helper_replaces_nothing_and_names_what_it_is_asked_to(certificates: Path) -> None:
    with pytest.raises(UsageError, match=r"there is a ca\.pem already"):
        make_certificates(certificates)
    command = ["openssl", "x509", "-in", str(certificates / "server.pem"), "-noout", "-text"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "DNS:gpu7.example.org, IP Address:10.1.2.3" in text
    end = ["openssl", "x509", "-in", str(certificates / "server.pem"), "-noout", "-checkend"]
    day = 86_400
    assert subprocess.run([*end, str(2 * day)], capture_output=True, check=False).returncode == 0
    assert subprocess.run([*end, str(4 * day)], capture_output=True, check=False).returncode == 1
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in certificates.iterdir()}
    assert {modes["server.key"], modes["client.key"]} == {0o600}
    assert "ca.key" not in modes


def test_a_name_that_no_certificate_takes_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot stand in a certificate"):
        make_certificates(tmp_path / "new", ["zoë.example"])
    assert not (tmp_path / "new").exists()


def test_the_client_sends_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.cli.options import Credentials

    monkeypatch.setenv("GOOD_KEY", "s3cret-of-sixteen-and-more")
    given = Credentials(header=["x=y"], key_from="GOOD_KEY")
    # The name that Triton's documentation gives the header of a key called api-key.
    assert KEY_HEADER == "triton-grpc-protocol-api-key"
    assert given.headers == {"x": "y", KEY_HEADER: "s3cret-of-sixteen-and-more"}
    assert key_of({}, None) is None


@pytest.mark.parametrize(
    ("host", "inside"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("gpu7", False)],
)  # fmt: skip
def test_which_addresses_are_this_machines_alone(host: str, inside: bool) -> None:
    assert is_loopback(host) == inside


REPEAT = "import sys, os; print(sys.argv[1:], 'other' in ' '.join(os.environ)); input()"


def test_hidden_words_reach_the_program_and_nobody_who_looks_at_it() -> None:
    import sys

    if not veil.is_possible():
        pytest.skip("this machine does not let a process look into its child")
    command = [sys.executable, "-I", "-S", "-c", REPEAT, "hidden", "shown", "hidden"]
    words = {5: "--one=w0rd", 7: "--two=with spaces and ünïcode"}
    process = veil.start(
        command,
        words,
        environment={"LANG": "C.UTF-8", "LAST": "x"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdin
        assert process.stdout
        said = process.stdout.readline().decode()
        assert said == f"{['--one=w0rd', 'shown', words[7]]} False\n"
        seen = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        assert seen[5:8] == [b"hidden", b"shown", b"hidden"]
        environment = Path(f"/proc/{process.pid}/environ")
        assert b"w0rd" in environment.read_bytes()
        assert stat.S_IMODE(environment.stat().st_mode) == 0o400
        veil.wipe(process.pid)
        assert b"w0rd" not in environment.read_bytes()
        process.stdin.close()
        assert process.wait(60) in (0, 1)


def test_a_program_that_is_not_there_is_told_and_not_left_waiting() -> None:
    with pytest.raises(OSError, match="nowhere"):
        veil.start(["/nowhere/program", "hidden"], {1: "x"}, environment={})
