"""Where servers are, and what they say of themselves."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipeline.errors import UsageError
from pipeline.gateway.engine import Generation
from pipeline.gateway.fleet.addresses import Address, look_up, read_address, servers_of
from pipeline.gateway.fleet.discovery import Discovery
from pipeline.gateway.fleet.fleet import Fleet
from pipeline.gateway.fleet.load import Load, ask_load, read_load
from pipeline.gateway.fleet.metrics import FleetCollector
from pipeline.gateway.fleet.opening import open_fleet

from .scripted import QUICK, Scripted, lost, read, until


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host:8001", Address("grpc", "host", 8001)),
        ("grpc://host:8001?metrics=8002", Address("grpc", "host", 8001, 8002)),
        ("grpcs://[::1]:9?metrics=10", Address("grpcs", "[::1]", 9, 10)),
    ],
)
def test_addresses_are_read(text: str, address: Address) -> None:
    assert read_address(text) == address


def test_an_address_says_where_things_are() -> None:
    address = read_address("grpcs://[::1]:9?metrics=10")
    assert address.url == "grpcs://[::1]:9"
    assert address.metrics_url == "http://[::1]:10/metrics"
    assert read_address("host:1").metrics_url is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("host", "not a server address"),
        ("http://host:8000", "scheme http:// is not gRPC"),
        ("host:8001?", None),
        ("host:8001?metrics", "only metrics=PORT"),
        ("host:8001?metrics=0", "only metrics=PORT"),
        ("host:8001?metrics=70000", "only metrics=PORT"),
        ("host:8001?metrics=1&metrics=2", "only metrics=PORT"),
        ("host:8001?metrics=1&weight=2", "only metrics=PORT"),
        ("host:8001?weight=2", "only metrics=PORT"),
    ],
)
def test_an_address_that_is_none_is_refused(text: str, why: str | None) -> None:
    if why is None:
        assert read_address(text) == Address("grpc", "host", 8001)
        return
    with pytest.raises(UsageError, match=why):
        read_address(text)


def test_a_name_stands_for_each_of_its_addresses_once() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        assert (host, port) == ("pods", 8001)
        return ["10.0.0.2", "10.0.0.1", "10.0.0.2"]

    servers = asyncio.run(servers_of(read_address("pods:8001?metrics=8002"), resolve))
    assert [server.url for server in servers] == ["grpc://10.0.0.1:8001", "grpc://10.0.0.2:8001"]
    assert servers[0].metrics_url == "http://10.0.0.1:8002/metrics"
    # What the certificate is for.
    assert {server.name for server in servers} == {"pods"}


@pytest.mark.parametrize("text", ["127.0.0.1:1", "[::1]:1", "localhost:1"])
def test_what_stands_for_one_server_is_not_looked_up(text: str) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        raise AssertionError(host)

    address = read_address(text)
    assert asyncio.run(servers_of(address, resolve)) == [address]


def test_the_system_looks_names_up() -> None:
    assert asyncio.run(look_up("127.0.0.1", 1)) == ["127.0.0.1"]
    assert asyncio.run(look_up("::1", 1)) == ["[::1]"]


def test_pods_come_and_go() -> None:
    pods: list[str] | None = ["10.0.0.1"]
    opened: dict[str, Scripted] = {}

    async def resolve(host: str, port: int) -> list[str]:
        if pods is None:
            raise OSError(host)
        return pods

    def open_engine(address: Address) -> Scripted:
        opened[address.host] = Scripted()
        return opened[address.host]

    def names(fleet: Fleet) -> dict[str, bool]:
        return {state.name: state.draining for state in fleet.replicas()}

    async def work() -> None:
        nonlocal pods
        fleet = Fleet(QUICK)
        addresses = [read_address("pods:1"), read_address("127.0.0.1:2")]
        discovery = Discovery(fleet, addresses, open_engine, resolve, again_s=0.001)
        discovery.start()
        first, fixed = "grpc://10.0.0.1:1", "grpc://127.0.0.1:2"
        assert names(fleet) == {fixed: False}
        assert await fleet.ready()
        await until(lambda: names(fleet) == {first: False, fixed: False})
        pods = ["10.0.0.1", "10.0.0.2"]
        await until(lambda: len(names(fleet)) == 3)
        # A stream keeps a pod that has gone from the name until it ends.
        fleet.drain(fixed)
        fleet.drain("grpc://10.0.0.2:1")
        source = fleet.generate(Generation((1,), 5))
        await anext(source)
        pods = ["10.0.0.2"]
        await until(lambda: names(fleet)[first])
        assert not opened["10.0.0.1"].closed
        assert len(await read(source)) == 4
        await until(lambda: opened["10.0.0.1"].closed)
        assert first not in names(fleet)
        # A name server that is away takes nobody with it.
        pods = None
        await asyncio.sleep(0.02)
        assert len(names(fleet)) == 2
        pods = ["10.0.0.1"]
        await until(lambda: first in names(fleet) and len(names(fleet)) == 2)
        await discovery.close()
        await fleet.close()

    asyncio.run(work())


def test_a_fleet_whose_servers_are_not_found_yet_waits_for_them() -> None:
    """Also where no stream is ever resumed, so that nothing else would wait."""
    from dataclasses import replace

    found = asyncio.Event()

    async def resolve(host: str, port: int) -> list[str]:
        await found.wait()
        return ["10.0.0.1"]

    async def work() -> None:
        policy = replace(QUICK, resumes=0)
        fleet = open_fleet([read_address("pods:1")], lambda _: Scripted(), policy, resolve)
        task = asyncio.create_task(read(fleet.generate(Generation((1,), 5))))
        ready = asyncio.create_task(fleet.ready())
        await asyncio.sleep(0.01)
        found.set()
        assert len(await task) == 5
        assert await ready
        await fleet.close()

    asyncio.run(work())


PAGE = """# HELP nv_trt_llm_request_metrics TRT LLM request metrics
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 3
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 11
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 8
nv_trt_llm_request_metrics{model="tensorrt_llm_draft",request_type="active",version="1"} 99
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm",version="1"} 10
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 40
"""
RESERVED = 'nv_llm_kv_cache_reserved_blocks{model="tensorrt_llm",version="1"} 30\n'


def test_a_metrics_page_says_how_busy_a_server_is() -> None:
    assert read_load(PAGE) == Load(11.0, 3.0, 8.0, 0.25)
    assert read_load(PAGE + RESERVED) == Load(11.0, 3.0, 8.0, 0.75)
    assert read_load("") is None
    assert read_load(PAGE.replace("request_metrics", "other")) is None
    assert read_load("\n".join(PAGE.splitlines()[2:3]) + "\n") == Load(11.0)


@contextmanager
def page_server(text: str) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_it_is_asked_for_now_and_then() -> None:
    async def work(url: str) -> None:
        fleet = Fleet(QUICK)
        fleet.add("one", Scripted(), metrics=url)
        await until(lambda: fleet.replicas()[0].requests == 14.0)
        assert fleet.replicas()[0].kv == 0.25
        await fleet.close()

    with page_server(PAGE) as url:
        asyncio.run(work(url))
        assert ask_load(url) == read_load(PAGE)
    assert ask_load(url) is None


def test_what_it_does_is_told_to_prometheus() -> None:
    prometheus = pytest.importorskip("prometheus_client")

    async def work() -> None:
        fleet = Fleet(QUICK)
        engine = Scripted()
        engine.fails = [(20, lost())]
        fleet.add("one", engine)
        registry = prometheus.CollectorRegistry()
        registry.register(FleetCollector(fleet))
        await read(fleet.generate(Generation((1, 2), 40)))
        text = prometheus.generate_latest(registry).decode()
        assert (
            registry.get_sample_value(
                "llm_resumes_total", {"outcome": "resumed", "how": "continued"}
            )
            == 1.0
        )
        assert 'llm_routed_total{by="load",server="one"} 2.0' in text
        assert registry.get_sample_value("llm_stall_seconds_count") == 1.0
        assert registry.get_sample_value("llm_server_ready", {"server": "one"}) == 1.0
        assert registry.get_sample_value("llm_server_streams", {"server": "one"}) == 0.0
        assert registry.get_sample_value("llm_server_requests", {"server": "one"}) is None
        await fleet.close()

    asyncio.run(work())
