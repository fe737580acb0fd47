"""What a service says while it serves: activity, greeting, farewell, and to systemd."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.service.activity import Counters, activity, ask, read_counters
from pipeline.service.forever import farewell
from pipeline.service.greeting import greeting
from pipeline.service.notify import take_socket, tell
from pipeline.targets.tensorrt.serve.container import is_ready

# Of Triton 2.51 with the demo's repository, after two requests to tensorrt_llm_bls, of which it
# refused one, and one to ensemble.
PAGE = """\
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="ensemble",version="1"} 1
nv_inference_request_success{model="tensorrt_llm",version="1"} 2
nv_inference_request_success{model="tensorrt_llm_bls",version="1"} 2
nv_inference_request_success{model="preprocessing",version="1"} 3
nv_inference_request_failure{model="tensorrt_llm",reason="REJECTED",version="1"} 0
nv_inference_request_failure{model="tensorrt_llm",reason="CANCELED",version="1"} 0
nv_inference_request_failure{model="tensorrt_llm",reason="BACKEND",version="1"} 0
nv_inference_request_failure{model="preprocessing",reason="OTHER",version="1"} 4
nv_llm_generated_tokens_total{model="tensorrt_llm",version="1"} 25
nv_cpu_utilization 0.1105527638190955
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 1
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 3
nv_llm_output_token_len_count{model="tensorrt_llm",response_metric_type="@",version="1"} 2
nv_llm_output_token_len_sum{model="tensorrt_llm",response_metric_type="@",version="1"} 20
""".replace("@", "total_output_tokens")
NOW = Counters(requests=2, tokens=25, active=3, waiting=1)


def test_counters_are_those_of_the_engine() -> None:
    assert read_counters(PAGE) == NOW


def test_tokens_of_requests_that_have_ended_where_there_is_no_better_count() -> None:
    page = "\n".join(line for line in PAGE.splitlines() if "generated_tokens" not in line)
    assert read_counters(page).tokens == 20


def test_what_a_server_does_not_count_is_left_out() -> None:
    page = "\n".join(line for line in PAGE.splitlines() if line.startswith("nv_inference"))
    counters = read_counters(page)
    assert counters == Counters(requests=2)
    assert activity(Counters(), counters, 60) == "in 60 s: 2 requests"


def test_failures_and_clients_that_gave_up_are_counted_apart() -> None:
    page = PAGE.replace('reason="CANCELED",version="1"} 0', 'reason="CANCELED",version="1"} 5')
    page = page.replace('reason="BACKEND",version="1"} 0', 'reason="BACKEND",version="1"} 1')
    counters = read_counters(page)
    assert (counters.requests, counters.failed, counters.cancelled) == (8, 1, 5)
    said = activity(Counters(1, 0, 0, 5, 0, 0), counters, 10)
    assert said == "in 10 s: 7 requests, 1 failed, 5 cancelled, 2 tokens/s, 3 active, 1 waiting"


def test_nothing_is_said_of_nothing() -> None:
    assert activity(NOW, dataclasses.replace(NOW), 60) is None
    # A request that is still going has changed the tokens.
    later = dataclasses.replace(NOW, tokens=1225)
    assert activity(NOW, later, 60) == "in 60 s: 0 requests, 20 tokens/s, 3 active, 1 waiting"


def test_a_server_that_was_restarted_counts_from_zero() -> None:
    before = Counters(requests=900, failed=7, tokens=90_000, active=3, waiting=1)
    said = activity(before, Counters(1, 0, 0, 120, 0, 0), 60)
    assert said == "in 60 s: 1 request, 2 tokens/s, 0 active, 0 waiting"


def test_a_server_that_was_restarted_and_has_done_more_since_counts_from_zero() -> None:
    before = Counters(requests=5, failed=3, cancelled=2, tokens=10)
    now = Counters(requests=8, failed=0, cancelled=0, tokens=60)
    assert activity(before, now, 60) == "in 60 s: 8 requests, 1 tokens/s"


def test_a_server_that_does_not_answer_is_not_known() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert ask(f"http://127.0.0.1:{port}/metrics") is None


@pytest.mark.parametrize(
    ("counters", "said"),
    [
        (Counters(active=0), "stopping; no request is in flight"),
        (Counters(active=1), "stopping; waits up to 5 s for 1 request in flight, and not at all"),
        (Counters(active=1200), "stopping; waits up to 5 s for 1,200 requests in flight, and"),
        (Counters(), "stopping; waits up to 5 s for requests in flight, and not at all after "),
        (None, "stopping; waits up to 5 s for requests in flight, and not at all after another"),
    ],
)
def test_the_farewell_says_what_it_waits_for(counters: Counters | None, said: str) -> None:
    assert farewell(counters, 5).startswith(said)


ADDRESSES = {"grpc": "127.0.0.1:8001", "http": "http://127.0.0.1:8000", "metrics": "here"}


def test_the_greeting_names_what_there_is(tmp_path: Path) -> None:
    assert greeting(tmp_path, ADDRESSES, None, 1.0) == (
        f"ready in 1.0 s, pid {os.getpid()}; stop with Ctrl-C\n"
        "  gRPC     127.0.0.1:8001\n  HTTP     http://127.0.0.1:8000\n  metrics  here"
    )
    (tmp_path / "tensorrt_llm_bls").mkdir()
    (tmp_path / "preprocessing").mkdir()
    config = tmp_path / "preprocessing" / "config.pbtxt"
    config.write_text('parameters { key: "chat_template_tokens" value { string_value: "{}" } }')
    plain = greeting(tmp_path, ADDRESSES, Path("build/x/triton.log"), 1.0)
    assert "  log      build/x/triton.log\n" in plain
    assert "--chat" not in plain
    config.write_text('parameters { key: "chat_template" value { string_value: "{{ x }}" } }')
    chat = greeting(tmp_path, ADDRESSES, None, 1.0)
    assert chat.endswith("\n  trtllm-pipeline generate --chat --url 127.0.0.1:8001")
    assert max(map(len, plain.splitlines())) <= 80


def test_the_curl_line_is_one_that_a_shell_takes(tmp_path: Path) -> None:
    (tmp_path / "tensorrt_llm_bls").mkdir()
    text = greeting(tmp_path, ADDRESSES, None, 1.0)
    command = re.search(r"curl.*?\\\n.*", text)
    assert command
    script = f'curl() {{ printf "%s\\n" "$@"; }}; {command[0]}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        *("-s", "http://127.0.0.1:8000/v2/models/tensorrt_llm_bls/generate"),
        *("-d", '{"text_input": "Once there was a", "max_tokens": 20}'),
    ]


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"@{tmp_path.name}-{os.getpid()}" if abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        manager.settimeout(5)
        address = take_socket()
        assert "NOTIFY_SOCKET" not in os.environ  # what is started from here on is not the service
        tell(address, "READY=1")
        assert manager.recv(100) == b"READY=1"
    tell(take_socket(), "READY=1")


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is set, a server on this machine would be looked for behind it."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PAGE.encode())

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            assert ask(f"{url}/metrics") == NOW
            assert is_ready(server.server_port)
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("address", ["@nobody-listens-here", "/no/such/socket", "/" + "x" * 200])
def test_nobody_to_tell_is_no_reason_not_to_serve(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    tell(address, "READY=1")
    assert f"NOTIFY_SOCKET {address} takes no READY=1: " in caplog.text
