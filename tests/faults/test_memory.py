"""Memory and disks that are full."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trtllm_client import Client, ClientError

from .asking import Streams, answers, ask_alone, prompts
from .edited import edited, with_parameters
from .record import Fault
from .service import Service, until


def mounted(place: Path, size: str) -> list[str]:
    """A command in front of another one, for which alone a small disk in memory is mounted.

    Args:
        place: Where.
        size: As mount(8) has it.
    """
    script = 'mount -t tmpfs -o "size=$1,mode=1777" tmpfs "$2" && shift 2 && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", size, str(place)]


@pytest.fixture
def may_mount(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare(1) is not here")
    place = tmp_path / "mount"
    place.mkdir()
    if subprocess.run(
        [*mounted(place, "64k"), "true"], capture_output=True, check=False
    ).returncode:
        pytest.skip("this user may not mount anything")


def inside(service: Service, path: Path) -> Path:
    """A path as the service sees it."""
    return Path(f"/proc/{service.pid}/root{path}")


def fill(path: Path) -> int:
    """Writes a file until its disk is full; its size."""
    size = 0
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                size += file.write(bytes(4096))
            except OSError:
                return size


@pytest.mark.faults
@pytest.mark.parametrize("policy", ["guaranteed_no_evict", "max_utilization"])
def test_requests_that_outgrow_the_kv_cache_all_finish(
    repository: Path,
    tmp_path: Path,
    own: Callable[..., Service],
    fault: Callable[..., Fault],
    policy: str,
) -> None:
    requests, tokens = 24, 250
    row = fault(
        f"KV cache full, {policy}",
        f"{requests} streams grow to {tokens} tokens each in a cache for two full sequences",
        "all finish with the text that each has alone",
    )
    config = with_parameters(
        max_tokens_in_paged_kv_cache=1024,
        batch_scheduler_policy=policy,
        enable_kv_cache_reuse="false",
    )
    small = edited(repository, tmp_path / "small", {"tensorrt_llm/config.pbtxt": config})
    service = own(small)
    assert service.gauge("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="max") == 32
    wanted = prompts(requests)
    alone = ask_alone(service.grpc, wanted, tokens)
    started = time.monotonic()
    with Streams(service.grpc, wanted, tokens) as streams:
        streams.wait_flowing()
        outcomes = streams.join()
    row.measured("all finished after", time.monotonic() - started)
    assert [outcome.error for outcome in outcomes] == [None] * requests
    texts = [outcome.text for outcome in outcomes]
    other = sum(alone[prompt] != text for prompt, text in zip(wanted, texts, strict=True))
    row.measured("texts other than alone", other, "", at_most=0)
    assert other == 0
    service.wait_idle()
    free = service.gauge("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="free")
    assert free == 32


SHM = Path("/dev/shm")


@pytest.mark.faults
@pytest.mark.usefixtures("may_mount")
def test_shared_memory_that_is_full(
    repository: Path, own: Callable[..., Service], fault: Callable[..., Fault]
) -> None:
    row = fault(
        "/dev/shm full",
        "a tmpfs of 64 MiB of its own, filled with streams open; then prompts of 100 kB, for which "
        "the models take more of it",
        "an error or an answer for each, never silence; as before when there is room again",
    )
    service = own(repository, before=mounted(SHM, "64m"))
    before = ask_alone(service.grpc, prompts(3), 40)
    with Streams(service.grpc, prompts(8), 300) as streams:
        streams.wait_flowing()
        filled = inside(service, SHM / "filled")
        fill(filled)
        started = time.monotonic()
        outcomes = streams.join()
    row.measured("open streams that ended whole", sum(not o.error for o in outcomes), "of 8")
    errors: list[str] = []
    with Client(service.grpc, timeout=30) as client:
        for _ in range(8):
            try:
                client.generate("One day " * 12_000, max_tokens=4)
            except ClientError as error:
                errors.append(str(error))
    row.measured("large prompts that got an error", len(errors), "of 8")
    assert not any("Traceback" in text for text in errors), errors
    served = sum(answers(service.grpc) for _ in range(8))
    row.measured("small requests answered meanwhile", served, "of 8")
    row.measured("all of that took", time.monotonic() - started)
    filled.unlink()
    back = until(lambda: answers(service.grpc), 90, "answers again")
    row.measured("answers again after", back, at_most=10)
    assert ask_alone(service.grpc, prompts(3), 40) == before
    row.measured("restarts", service.voice.count("ready again after"), "")


@pytest.mark.faults
@pytest.mark.usefixtures("may_mount")
def test_too_little_shared_memory_for_a_start(
    repository: Path, own: Callable[..., Service], fault: Callable[..., Fault]
) -> None:
    fault(
        "/dev/shm too small",
        "a tmpfs of 1 MiB of its own",
        "serve ends with one paragraph that names shared memory",
    )
    with pytest.raises(AssertionError, match="serve did not start") as caught:
        own(repository, before=mounted(SHM, "1m"))
    assert "shared memory" in str(caught.value).lower() or "/dev/shm" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.faults
@pytest.mark.usefixtures("may_mount")
def test_a_log_on_a_full_disk(
    repository: Path, tmp_path: Path, own: Callable[..., Service], fault: Callable[..., Fault]
) -> None:
    row = fault(
        "disk of the log full",
        "a tmpfs of 256 KiB, filled; then requests that fail, each of which is logged",
        "requests are answered; the log goes on when there is room, and says what it lacks",
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    log = disk / "triton.log"
    service = own(repository, "--log", str(log), before=mounted(disk, "256k"))
    before = ask_alone(service.grpc, prompts(3), 40)
    filled = inside(service, disk / "filled")
    fill(filled)
    stub, server = service.stub("tensorrt_llm"), service.server
    os.kill(stub, signal.SIGKILL)  # whose restart is a long text
    until(lambda: "ready again" in service.voice, 90, "ready again")
    assert ask_alone(service.grpc, prompts(3), 40) == before
    row.measured("requests answered while it was full", 3, "of 3")
    assert service.server != server
    size = inside(service, log).stat().st_size
    filled.unlink()
    os.kill(service.stub("tensorrt_llm"), signal.SIGKILL)
    until(lambda: service.voice.count("ready again") == 2, 90, "ready again")
    until(lambda: inside(service, log).stat().st_size > size, 10, "the log goes on")
    text = inside(service, log).read_text(errors="replace")
    assert "lines of the log could not be written: No space left on device" in text
