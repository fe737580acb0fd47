"""``README.md`` of an export: what lies in it, and how it is run."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.formats import ALGOS, NO_QUANT
from pipeline.targets.vllm.commands import (
    FOLDER,
    IMAGE,
    MODEL,
    MOUNT,
    PORT,
    REPOSITORY,
    Served,
    docker_words,
    serve_words,
    shell,
)

AMX = (
    "On a processor with AMX, vLLM does not read the input scales of this format: it rounds inputs "
    "by scales that it finds for each token, and aborts in float16. The numbers are then not those "
    "that were measured. GPUs, and processors without AMX, take the scales as they are"
)
"""Read in vLLM 0.32's ``kernels/linear/scaled_mm/cpu.py``, and seen."""
ROUNDED = (
    "vLLM casts the scale of each row to the model's dtype as it loads it, which moves a weight by "
    "2^-11 of itself in float16 and by 2^-8 in bfloat16 at most. The folder has the scales in "
    "float32"
)
"""``params_dtype`` of vLLM's ``compressed_tensors_wNa16.py``."""
GATED = (
    "vLLM makes one matrix of gate_proj and up_proj. Where their scales differ it rounds the one "
    "with the smaller scale again, by the larger"
)
"""Read in ``process_weights_after_loading`` of vLLM's modelopt.py."""


def notes(algo: str, *, gated: bool = False) -> list[str]:
    """Says what vLLM does with a format that the folder alone does not show.

    Args:
        algo: The checkpoint's ``quant_algo``.
        gated: Whether the FP8 scales of gate and up differ in a layer.
    """
    row = ALGOS[algo]
    told = {
        AMX: row.activations == "int8",
        ROUNDED: row.scales == "row" and row.activations == "float",
        GATED: gated,
    }
    return [note for note, applies in told.items() if applies]


def readme(served: Served, algo: str, layout: str | None, said: list[str]) -> str:
    """Writes the text.

    Args:
        served: The engine's arguments.
        algo: The checkpoint's ``quant_algo``.
        layout: How it is stored; None in floating point.
        said: What :func:`notes` has to say.
    """
    return "\n".join(_lines(served, algo, layout, said))


def _lines(served: Served, algo: str, layout: str | None, said: list[str]) -> Iterator[str]:
    stored = served.dtype if algo == NO_QUANT else f"{algo}, stored as {layout}"
    yield "# A model for vLLM"
    yield ""
    yield f"Written by trtllm-pipeline: `{FOLDER}/` is a Hugging Face folder ({stored})."
    yield "Its codes and scales are those of the checkpoint that was measured."
    for note in said:
        yield ""
        yield f"{note}."
    yield ""
    yield "## An OpenAI server"
    yield ""
    yield "In an environment that has vLLM, from this folder:"
    yield ""
    yield "```sh"
    yield shell(serve_words(served))
    yield "```"
    yield ""
    yield "It asks for a key where the variable `VLLM_API_KEY` is set; never give one on the"
    yield "command line, where others read it. Where a request says nothing of sampling, it takes"
    yield f"`{FOLDER}/generation_config.json`; `--generation-config vllm` leaves that out."
    yield ""
    yield "```sh"
    yield f"curl http://127.0.0.1:{PORT}/v1/completions -H 'Content-Type: application/json' \\"
    yield (
        f'''  -d '{{"model": "{FOLDER}", "prompt": "Once", "max_tokens": 16, "temperature": 0}}\''''
    )
    yield "```"
    yield ""
    yield "## Triton's vLLM backend"
    yield ""
    yield f"`{REPOSITORY}/` is its model repository, for a container with this folder at {MOUNT}:"
    yield ""
    yield "```sh"
    yield shell(docker_words())
    yield "docker compose up  # the same, from compose.yaml"
    yield "```"
    yield ""
    yield f"The image is {IMAGE}. For a server without a container,"
    yield f"write this folder's own path into `{REPOSITORY}/{MODEL}/1/model.json`."
    yield ""
    yield "```sh"
    yield f"curl http://127.0.0.1:8000/v2/models/{MODEL}/generate \\"
    yield ("""  -d '{"text_input": "Once", "parameters": {"stream": false, "temperature": 0}}'""")
    yield "```"
    yield ""
