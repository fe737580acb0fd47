"""A real server's metrics, read by Prometheus' parser: against the page and a client's count."""

from __future__ import annotations

import asyncio
import random
import re
import time
import urllib.request
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from trtllm_client import AsyncClient, Client, ClientError, add_input, new_message

from ..conftest import PROJECT
from ..metrics import UPSTREAM

ENGINE = "tensorrt_llm"
BLOCK = 32
SLOTS = 32  # compile.max_batch_size of the demo
GENEROUS_S = 60

Key = tuple[str, str]


class Page:
    """What a server publishes of its engine at one moment."""

    def __init__(self, server: Any) -> None:
        with urllib.request.urlopen(server.metrics_url, timeout=30) as answer:
            text = answer.read().decode()
        self.types: dict[str, str] = {}
        self.labels: dict[str, dict[str, set[str]]] = {}
        self._values: dict[Key, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("model") == ENGINE and sample.name.startswith(
                    ("nv_trt_llm_", "nv_llm_")
                ):
                    # This parser gives every counter an ending that not all of them have.
                    given = f"{sample.name}{{" in text
                    name = sample.name if given else sample.name.removesuffix("_total")
                    self._take(family, sample, name)

    def _take(self, family: Any, sample: Any, sample_name: str) -> None:
        name = family.name if family.type == "histogram" else sample_name
        self.types[name] = family.type
        own = {k: v for k, v in sample.labels.items() if k not in ("model", "version")}
        assert sample.labels["version"] == "1"
        values = self.labels.setdefault(name, {})
        for label, value in own.items():
            if not (family.type == "histogram" and label == "le"):
                values.setdefault(label, set()).add(value)
        if family.type == "histogram":
            own.pop("response_metric_type", None)
        self._values[sample_name, next(iter(own.values()), "")] = sample.value

    def __getitem__(self, key: str | Key) -> float:
        return self._values[(key, "") if isinstance(key, str) else key]


def requests(page: Page, kind: str) -> float:
    return page["nv_trt_llm_request_metrics", kind]


def blocks(page: Page, kind: str) -> float:
    return page["nv_trt_llm_kv_cache_block_metrics", kind]


def wait_for(server: Any, done: Callable[[Page], bool]) -> Page:
    deadline = time.monotonic() + GENEROUS_S
    while not done(page := Page(server)):
        assert time.monotonic() < deadline, page.__dict__
        time.sleep(0.05)
    return page


def idle(server: Any, ended: float = 0, outcome: str = "finished") -> Page:
    """The page when nothing runs any more and so many requests have ended so since the start."""
    return wait_for(
        server,
        lambda page: (
            requests(page, "active") == 0
            and blocks(page, "used") == 0
            and page["nv_llm_kv_cache_reserved_blocks"] == 0
            and page["nv_llm_requests_total", outcome] >= ended
            and page["nv_llm_output_token_len_count"] == page["nv_llm_requests_total", "finished"]
        ),
    )


def ask(client: Client, ids: Sequence[int], tokens: int) -> int:
    """Streams so many tokens, whatever the end; returns how many came."""
    message = new_message(ENGINE, outputs=("output_ids", "sequence_length"))
    add_input(message, "input_ids", list(ids), datatype="INT32")
    add_input(message, "input_lengths", [len(ids)], datatype="INT32")
    add_input(message, "request_output_len", [tokens], datatype="INT32")
    add_input(message, "streaming", [True], datatype="BOOL")
    return sum(len(answer["output_ids"].values) for answer in client.responses(message))


def prompt(length: int) -> list[int]:
    """Tokens that no other prompt begins with."""
    return [random.SystemRandom().randint(3, 900) for _ in range(length)]


def test_the_page_has_the_families_that_are_published(server: Any) -> None:
    page = Page(server)
    text = (PROJECT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text.replace("| |", "|  |").replace("| |", "|  |").splitlines()
        if line.startswith("| `nv_")
    ]
    written = {row[0].strip("`"): row[1:] for row in rows}
    assert set(written) == set(page.types)
    for name, (kind, label, values, unit, nvidia, meaning) in written.items():
        assert kind == page.types[name], name
        assert unit, name
        assert meaning, name
        published = page.labels[name]
        assert set(published) == ({label.strip("`")} if label else set()), name
        listed = re.findall(r"`([^`]+)`", values)
        assert set(listed) == published.get(label.strip("`"), set()), name
        upstream = UPSTREAM.get(name)
        assert nvidia == ("yes" if upstream else "no"), name
        if upstream:
            assert (label.strip("`"), set(listed) <= set(upstream[1])) == (upstream[0], True)


def test_numbers_move_by_what_a_client_sent_and_got(server: Any) -> None:
    asked = [(7, 1), (33, 5), (64, 17), (100, 40), (12, 2)]
    before = idle(server)
    started = time.monotonic()
    with Client(server.grpc_url) as client:
        assert [ask(client, prompt(n), out) for n, out in asked] == [out for _, out in asked]
    took_ms = (time.monotonic() - started) * 1e3
    after = idle(server, before["nv_llm_requests_total", "finished"] + len(asked))

    def moved(name: str, value: str = "") -> float:
        return after[name, value] - before[name, value]

    prompts, outputs = zip(*asked, strict=True)
    assert moved("nv_llm_prompt_tokens_total") == sum(prompts) == 216
    assert moved("nv_llm_generated_tokens_total") == sum(outputs) == 65
    assert moved("nv_llm_requests_total", "finished") == 5
    assert moved("nv_llm_input_token_len_sum") == 216
    assert moved("nv_llm_input_token_len_bucket", "10") == 1  # 7
    assert moved("nv_llm_input_token_len_bucket", "50") == 3  # 7, 33, 12
    assert moved("nv_llm_output_token_len_sum") == 65
    assert moved("nv_llm_output_token_len_bucket", "10") == 3  # 1, 5, 2
    for once in ("queue_time_ms", "time_to_first_token_ms"):
        assert moved(f"nv_llm_{once}_count") == 5
        assert moved(f"nv_llm_{once}_bucket", "+Inf") == 5
    assert moved("nv_llm_time_per_output_token_ms_count") == 4  # all but the one of a single token
    between = "nv_llm_inter_token_latency_ms"
    assert moved(f"{between}_count") == 65 - 5
    assert moved(f"{between}_bucket", "+Inf") == 65 - 5
    counts = [after[f"{between}_bucket", le] for le in ("1", "2", "5", "10", "20", "50", "100")]
    assert counts == sorted(counts)
    # One after the other, so all that was measured is a part of what the client waited.
    first = moved("nv_llm_time_to_first_token_ms_sum")
    assert 0 < moved("nv_llm_queue_time_ms_sum") < first
    assert first + moved(f"{between}_sum") < took_ms
    assert moved("nv_trt_llm_general_metrics", "iteration_counter") >= 65
    stamp = after["nv_trt_llm_general_metrics", "timestamp"]
    assert time.time() - 600 < stamp / 1e6 < time.time()
    for other in ("cancelled", "refused", "failed"):
        assert moved("nv_llm_requests_total", other) == 0
    assert moved("nv_llm_preemptions_total") == 0


def test_blocks_of_a_prompt_that_comes_twice_are_reused(server: Any) -> None:
    ids = prompt(2 * BLOCK + 6)
    reused, missed = (f"nv_llm_kv_cache_{kind}_blocks_total" for kind in ("reused", "missed"))
    pages = [idle(server)]
    with Client(server.grpc_url) as client:
        for _ in range(2):
            ask(client, ids, 3)
            pages.append(idle(server, pages[-1]["nv_llm_requests_total", "finished"] + 1))
    first, second = (
        (after[reused] - before[reused], after[missed] - before[missed])
        for before, after in pairwise(pages)
    )
    # 70 tokens are two blocks and a part of one, which is computed each time.
    assert first == (0, 3)
    assert second == (2, 1)
    assert blocks(pages[-1], "reused") == pages[-1][reused]


def test_a_full_batch_makes_requests_wait_and_clients_that_leave_are_counted(server: Any) -> None:
    streams = SLOTS + 4
    before = idle(server)

    async def load() -> Page:
        async with AsyncClient(server.grpc_url) as client:

            async def stream(number: int) -> None:
                while True:  # until it is cancelled: on a busy machine the page comes late
                    words = f"{number} girls"
                    async with client.stream(words, max_tokens=400, end_id=-1) as pieces:
                        async for _ in pieces:
                            pass

            tasks = [asyncio.create_task(stream(number)) for number in range(streams)]
            try:
                return await asyncio.to_thread(wait_for, server, settled)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def settled(page: Page) -> bool:
        """A page of one moment: families are published one after the other while requests come."""
        active, scheduled, waiting = (
            requests(page, kind) for kind in ("active", "scheduled", "waiting")
        )
        held = page["nv_llm_kv_cache_reserved_blocks"]
        return waiting > 0 and active == scheduled + waiting and 0 < blocks(page, "used") <= held

    page = asyncio.run(load())
    assert requests(page, "max") == SLOTS
    assert requests(page, "scheduled") <= SLOTS
    assert requests(page, "active") == requests(page, "scheduled") + requests(page, "waiting")
    assert requests(page, "active") <= streams
    assert 0 < blocks(page, "used") <= page["nv_llm_kv_cache_reserved_blocks"]
    assert blocks(page, "used") + blocks(page, "free") == blocks(page, "max")
    after = idle(server)
    ended = {
        outcome: after["nv_llm_requests_total", outcome] - before["nv_llm_requests_total", outcome]
        for outcome in ("finished", "cancelled", "refused", "failed")
    }
    assert ended["cancelled"] > 0
    assert ended["refused"] == ended["failed"] == 0
    assert ended["cancelled"] <= streams


def test_a_request_that_is_refused_is_counted_as_such_alone(server: Any) -> None:
    before = idle(server)
    with (
        Client(server.grpc_url) as client,
        pytest.raises(ClientError, match="request_output_len"),
    ):
        ask(client, prompt(5), 100_000)
    after = idle(server, before["nv_llm_requests_total", "refused"] + 1, "refused")
    assert after["nv_llm_requests_total", "refused"] == (
        before["nv_llm_requests_total", "refused"] + 1
    )
    for same in ("nv_llm_prompt_tokens_total", "nv_llm_queue_time_ms_count"):
        assert after[same] == before[same]


def test_the_engines_memory_is_that_of_its_process(server: Any) -> None:
    pid = next(pid for pid, model in server.health().stubs.items() if model == ENGINE)
    page = idle(server)
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    kilobytes = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert kilobytes
    assert page["nv_trt_llm_runtime_memory_metrics", "cpu"] == pytest.approx(
        int(kilobytes[1]) * 1024, rel=0.05
    )
