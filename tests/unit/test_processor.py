from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.processor import has_vnni, is_intel, processor_name


def listed(folder: Path, text: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(text)
    return path


def test_the_processor_is_named(tmp_path: Path) -> None:
    two = "processor\t: 0\nmodel name\t: Fast: 9000 @ 3 GHz\n\nmodel name\t: another\n"
    assert processor_name(listed(tmp_path, two)) == "Fast: 9000 @ 3 GHz"
    # Arm has no such line.
    assert processor_name(listed(tmp_path, "processor\t: 0\nFeatures\t: asimd\n")) == "unknown"
    assert processor_name(tmp_path / "gone") == "unknown"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", True),
        ("flags\t\t: fpu avx2 avx_vnni", True),
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", False),
        ("flags\t\t:", False),
        ("Features\t: asimd i8mm", None),
    ],
)
def test_vnni_is_read_from_the_flags_of_x86(
    tmp_path: Path, line: str, expected: bool | None
) -> None:
    assert has_vnni(listed(tmp_path, f"processor\t: 0\n{line}\n")) is expected


def test_the_vendor_is_read(tmp_path: Path) -> None:
    assert is_intel(listed(tmp_path, "processor\t: 0\nvendor_id\t: GenuineIntel\n"))
    assert not is_intel(listed(tmp_path, "processor\t: 0\nvendor_id\t: AuthenticAMD\n"))
    assert not is_intel(tmp_path / "gone")
