"""Whether the CPU target can run on this machine, and how it computes here."""

from __future__ import annotations

from pipeline.dependencies import install, installed
from pipeline.formats import FORMATS, either
from pipeline.processor import has_vnni
from pipeline.targets.base import Diagnosis, look_for


def findings() -> list[Diagnosis]:
    """Looks for the packages of the CPU target and at the processor's INT8 instructions."""
    return [
        look_for("openvino", "cpu", "compiling for the CPU"),
        look_for("openvino-genai", "cpu", "serving the CPU engine"),
        look_for("nvidia-pytriton", "cpu", "the Triton server without a container"),
        _int8_products(has_vnni()),
        Diagnosis(
            "target openvino",
            *_can("openvino", "openvino-genai", "nvidia-pytriton"),
            install("cpu"),
        ),
    ]


def _int8_products(vnni: bool | None) -> Diagnosis:
    if vnni is None:
        return Diagnosis("INT8 products", "not known", True, "")
    quantized = [row for row in FORMATS.values() if row.quantizes]
    integers = either(row for row in quantized if row.activations == "int8")
    others = either(row for row in quantized if row.activations == "float")
    advice = (
        f"This processor has no VNNI, so {integers} is computed in float32: exactly, and more "
        f"slowly than INT8. {others} needs none"
    )
    return Diagnosis("INT8 products", "VNNI" if vnni else "in float32", vnni, advice)


def _can(*packages: str) -> tuple[str, bool]:
    missing = [package for package in packages if installed(package) is None]
    return (f"needs {', '.join(missing)}", False) if missing else ("ready", True)
