"""What a KV cache and the weights take, and what a machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.targets.openvino.memory import (
    kv_bytes_per_token,
    kv_cache_tokens,
    machine_memory,
    weight_bytes,
)
from tests.unit.openvino.test_refusals import recipe
from tests.unit.openvino.test_rope import facts

MEMINFO = "MemTotal:       8000 kB\nMemFree:        1000 kB\nMemAvailable:   2000 kB\n"


# The engine of the demo model: 4 layers, 2 KV heads of 64 features. OpenVINO granted 1/131072 of
# the machine's bytes as blocks of 32 tokens in float32, 1/65710 in float16, 1/38992 in 8 bits.
@pytest.mark.parametrize(("precision", "block"), [("f32", 131072), ("f16", 65536), ("u8", 38912)])
def test_a_block_takes_what_openvino_reserves(precision: str, block: int) -> None:
    model = facts(num_hidden_layers=4, num_key_value_heads=2)
    assert 32 * kv_bytes_per_token(model, precision) == block


def test_the_cache_holds_whole_blocks(tmp_path: Path) -> None:
    assert kv_cache_tokens(recipe(tmp_path, "compile.max_batch_size=3")) == 3 * 2048
    short = ("compile.max_batch_size=3", "compile.max_seq_len=33", "compile.max_input_len=8")
    assert kv_cache_tokens(recipe(tmp_path, *short)) == 3 * 64
    assert kv_cache_tokens(recipe(tmp_path, "serve.max_tokens_in_paged_kv_cache=100")) == 96


@pytest.mark.parametrize(("name", "bits"), [("float16", 16), ("int8_sq", 8), ("int4_awq", 4)])
def test_weights_by_hand(tmp_path: Path, name: str, bits: int) -> None:
    # qkv 256 x 768, dense 256 x 256, three of 256 x 512; two tables of 100 x 256 in 16 bits.
    linears = 256 * 768 + 256 * 256 + 3 * 256 * 512
    expected = linears * bits // 8 + 2 * 100 * 256 * 2
    assert weight_bytes(facts(), recipe(tmp_path, f"quantize.format={name}")) == expected


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": MEMINFO}, 8000 * 1024),
        ({"sys/fs/cgroup/memory.max": "3000\n", "proc/self/cgroup": "0::/\n"}, 3000),
        ({"sys/fs/cgroup/memory.max": "max\n", "proc/self/cgroup": "0::/\n"}, 8000 * 1024),
        (
            {"sys/fs/cgroup/a/memory.max": "4000\n", "proc/self/cgroup": "0::/a/b\n"},
            4000,
        ),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "5000\n",
                "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/job\n0::/\n",
            },
            5000,
        ),
        # In a container without a view of the host's groups.
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "6000\n",
                "proc/self/cgroup": "4:memory:/docker/abc\n",
            },
            6000,
        ),
    ],
)
def test_a_container_has_less_than_its_machine(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    machine = {"proc/meminfo": MEMINFO} if files else {}
    assert machine_memory(write(tmp_path, machine | files)) == expected
