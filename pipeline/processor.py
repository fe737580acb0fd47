"""What the kernel says about this machine's processor."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Instructions that add INT8 products in 32 bits; those before them saturate in 16.
_VNNI = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"}
_BFLOAT16 = "amx_bf16"


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """Reads the processor's own name; ``unknown`` where the kernel does not say."""
    return _first(cpuinfo, "model name") or "unknown"


def has_vnni(cpuinfo: Path = CPUINFO) -> bool | None:
    """Says whether an x86 processor multiplies INT8 exactly by itself; None for any other."""
    flags = _first(cpuinfo, "flags")
    return None if flags is None else not _VNNI.isdisjoint(flags.split())


def multiplies_bfloat16(cpuinfo: Path = CPUINFO) -> bool:
    """Says whether the processor has a unit for matrices in bfloat16."""
    return _BFLOAT16 in (_first(cpuinfo, "flags") or "").split()


def is_intel(cpuinfo: Path = CPUINFO) -> bool:
    """Says whether the processor is Intel's."""
    return _first(cpuinfo, "vendor_id") == "GenuineIntel"


def _first(cpuinfo: Path, key: str) -> str | None:
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    values = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in values if name.strip() == key), None)
