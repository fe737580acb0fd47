"""GPUs and versions, as ``nvidia-smi`` and package metadata give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.targets.tensorrt.environment import (
    engine_tools,
    inspect_machine,
    parse_query,
    parse_slices,
    toolkit,
)
from tests.doubles.trtllm_build.machine import pretend

TWO_GPUS = """\
0, GPU-6fe1b8ce-1f2e-4c6b-9f39-0a1f4b1f8a01, NVIDIA L40S, 8.9, 46068, 580.65.06, [N/A]
1, GPU-7ab2c9df-2a3f-5d7c-8e40-1b2a5c2a9b12, NVIDIA L40S, 8.9, 46068, 580.65.06, [N/A]
"""


def test_the_query_is_parsed() -> None:
    gpus, driver = parse_query(TWO_GPUS)
    assert driver == "580.65.06"
    assert [(gpu.index, gpu.name, gpu.sm, gpu.memory_mib) for gpu in gpus] == [
        (0, "NVIDIA L40S", 89, 46068),
        (1, "NVIDIA L40S", 89, 46068),
    ]


def test_a_gpu_that_shares_the_hosts_memory() -> None:
    gpus, _ = parse_query("0, GPU-1, NVIDIA GB10, 12.1, [N/A], 580.95.05, [N/A]\n")
    assert (gpus[0].sm, gpus[0].memory_mib) == (121, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no GPU"),
        ("0, GPU-1, NVIDIA L4\n", "does not have the fields"),
        ("a" + ",b" * 6, "^the field index is 'a', not a whole number$"),
        (
            "0, GPU-1, NVIDIA L4, [N/A], 1, 580.1, [N/A]",
            r"^the field compute_cap is '\[N/A\]', not a version such as 8\.9$",
        ),
    ],
)
def test_other_answers_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_query(text)


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        ("0,2", [0, 2]),
        ("2", [2]),
        ("1,7,0", [1]),
        ("", []),
        ("-1", []),
        ("GPU-00000000-0000-0000-0000-000000000001", [1]),
        ("GPU-0", []),
    ],
)
def test_hidden_gpus_do_not_count(
    visible: str, indices: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, gpus="3")
    machine = inspect_machine({"CUDA_VISIBLE_DEVICES": visible})
    assert [gpu.index for gpu in machine.gpus] == indices
    assert bool(machine.problem) == (not indices)


# As NVIDIA's MIG user guide shows them: nvidia-smi -L on a machine with a divided and a whole GPU.
LISTED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 1c.3g.20gb  Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-4dab5b5a-7c8d-4f1e-a2b3-0c1d2e3f4a5b)
"""
QUERIED = """\
0, GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77, NVIDIA A100-SXM4-40GB, 8.0, 40960, 580.65.06, Enabled
1, GPU-4dab5b5a-7c8d-4f1e-a2b3-0c1d2e3f4a5b, NVIDIA A100-SXM4-40GB, 8.0, 40960, 580.65.06, Disabled
"""


@pytest.fixture
def divided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An nvidia-smi that answers as on that machine."""
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\nif [ \"$1\" = -L ]; then cat <<'END'\n{LISTED}END\n"
        f"else cat <<'END'\n{QUERIED}END\nfi\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        # The guide: CUDA uses one compute instance, the first that is named.
        ("MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", ["NVIDIA A100-SXM4-40GB MIG 3g.20gb"]),
        (
            "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb,MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
            ["NVIDIA A100-SXM4-40GB MIG 1c.3g.20gb"],
        ),
        ("1", ["NVIDIA A100-SXM4-40GB"]),
        ("GPU-4dab5b5a", ["NVIDIA A100-SXM4-40GB"]),
    ],
)
def test_a_slice_that_is_named_is_the_gpu(divided: None, visible: str, names: list[str]) -> None:
    machine = inspect_machine({"CUDA_VISIBLE_DEVICES": visible})
    assert [gpu.name for gpu in machine.gpus] == names
    assert machine.problem == ""
    # 19968 MiB of 3g.20gb, by the guide's table; never more than there is.
    if "3g.20gb" in names[0]:
        assert 18_000 <= machine.gpus[0].memory_mib <= 19_968
        assert machine.gpus[0].sm == 80
        assert machine.gpus[0].device == visible.partition(",")[0]


@pytest.mark.parametrize("visible", [None, "0", "0,1", "GPU-5d5ba0d6"])
def test_a_divided_gpu_is_not_taken_for_a_whole_one(divided: None, visible: str | None) -> None:
    machine = inspect_machine({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert machine.gpus == ()
    assert machine.driver == "580.65.06"
    assert machine.problem == (
        "MIG divides GPU 0, so CUDA does not see it whole; name one of its slices: "
        "CUDA_VISIBLE_DEVICES=MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"
    )


def test_a_divided_gpu_without_slices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\nif [ $1 = -L ]; then echo 'GPU 0: NVIDIA A30 (UUID: GPU-1)'\n"
        "else echo '0, GPU-1, NVIDIA A30, 8.0, 24576, 580.65.06, Enabled'; fi\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert "it has no slice yet: nvidia-smi mig -cgi" in inspect_machine({}).problem


def test_a_slice_that_is_not_there(divided: None) -> None:
    machine = inspect_machine({"CUDA_VISIBLE_DEVICES": "MIG-00000000"})
    assert machine.problem == "CUDA_VISIBLE_DEVICES hides every GPU"


def test_older_names_of_slices_are_read() -> None:
    """Of drivers before R470: MIG-GPU-<UUID>/<GPU instance>/<compute instance>."""
    gpus, _ = parse_query(QUERIED)
    text = (
        "GPU 0: A100-SXM4-40GB (UUID: GPU-6482a92e)\n"
        "  MIG 1g.5gb Device 0: (UUID: MIG-GPU-6482a92e-d06b-dc68-c272-e3d8f7ecabbf/7/0)\n"
    )
    (part,) = parse_slices(text, gpus)
    assert part.uuid == "MIG-GPU-6482a92e-d06b-dc68-c272-e3d8f7ecabbf/7/0"
    assert 4_600 <= part.memory_mib <= 4_864


def test_a_slice_of_no_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="is no slice of a GPU"):
        parse_slices("  MIG 1g.5gb Device 0: (UUID: MIG-a)\n", ())


def test_the_key_on_a_gpu_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, tmp_path, sm="89", gpus="2", tensorrt_llm=None)
    assert engine_tools() == {
        "gpu": "NVIDIA L40S",
        "sm": "89",
        "driver": "580",
        "tensorrt-llm": "1.2.1",
        "tensorrt": "10.14.1.48",
        "cuda": "13",
    }


@pytest.mark.parametrize(
    ("wheel", "release"),
    [("10.14.1.48.post1", "10.14.1.48"), ("10.14.1.48", "10.14.1.48"), ("nightly", "nightly")],
)
def test_a_wheels_own_number_is_not_tensorrts(
    wheel: str, release: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, tensorrt=wheel)
    assert toolkit().tensorrt == release
    assert engine_tools()["tensorrt"] == release


def test_the_images_tensorrt_where_no_wheel_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, tensorrt=None)
    assert toolkit({"TRT_VERSION": "10.14.1.48-1+cuda13.0"}).tensorrt == "10.14.1.48"
    assert toolkit({}).tensorrt == "unknown"


def test_the_key_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, tmp_path, programs=(), tensorrt_llm=None)
    tools = engine_tools()
    assert (tools["gpu"], tools["sm"], tools["driver"]) == ("absent", "absent", "absent")
    assert tools["tensorrt-llm"] == "1.2.1"


def test_a_driver_that_fails_is_not_a_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, gpus="0")
    machine = inspect_machine({})
    assert machine.gpus == ()
    assert machine.problem == "nvidia-smi fails: No devices were found"
