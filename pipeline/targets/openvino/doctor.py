"""Whether the CPU target can run on this machine, and how it computes here."""

from __future__ import annotations

from pipeline.errors import MissingDependencyError, PipelineError
from pipeline.formats import FORMATS, either
from pipeline.processor import has_vnni
from pipeline.targets.base import Diagnosis, look_for
from pipeline.targets.machine import MIB, shared_memory
from pipeline.triton.installation import Installation

# A Python model of Triton 2.51 begins with 1 MiB of it and takes more as requests come, 1 MiB each
# time; a repository has four or five. It is also what Docker gives a container.
STUBS = 64 * MIB


def findings() -> list[Diagnosis]:
    """Looks for the packages and the server of the CPU target, and at the processor."""
    return [
        look_for("openvino", "cpu", "compiling for the CPU"),
        look_for("openvino-genai", "cpu", "serving the CPU engine"),
        look_for("nvidia-pytriton", "cpu", "the Triton server without a container"),
        *_server(),
        shared_memory(STUBS, "Triton's Python models need"),
        _int8_products(has_vnni()),
    ]


def _server() -> list[Diagnosis]:
    try:
        Installation.find()
    except MissingDependencyError:
        return []  # its package is absent, which is said
    except PipelineError as error:
        advice = f"{error.why}. {error.fix}"
        return [Diagnosis("Triton server", error.what, False, advice)]
    return [Diagnosis("Triton server", "runs with this Python")]


def _int8_products(vnni: bool | None) -> Diagnosis:
    if vnni is None:
        return Diagnosis("INT8 products", "not known")
    quantized = [row for row in FORMATS.values() if row.quantizes]
    integers = either(row for row in quantized if row.activations == "int8")
    others = either(row for row in quantized if row.activations == "float")
    advice = (
        f"This processor has no VNNI, so {integers} is computed in float32: exactly, and more "
        f"slowly than INT8. {others} needs none"
    )
    return Diagnosis("INT8 products", "VNNI" if vnni else "in float32", vnni, advice, needed=False)
