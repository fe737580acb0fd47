"""Loads the source model with transformers, minding what its pinned version overlooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.dependencies import require
from pipeline.errors import SourceError
from pipeline.models.facts import ModelFacts
from pipeline.source.exhausted import explained_memory


def load_causal_lm(
    directory: Path, dtype: Any, *, trust_remote_code: bool = False, device_map: Any = None
) -> Any:
    """Loads a ``*ForCausalLM`` in evaluation mode, from safetensors on this machine alone.

    Args:
        directory: A Hugging Face snapshot.
        dtype: The ``torch.dtype`` to load into.
        trust_remote_code: Runs the snapshot's own Python.
        device_map: As transformers takes it; None is the CPU.

    Raises:
        MissingDependencyError: transformers is not installed.
        SourceError: transformers cannot load it.
    """
    transformers = require("transformers", "quantize")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = load_config(directory, trust_remote_code=trust_remote_code)
    placement = {} if device_map is None else {"device_map": device_map}
    with _explained(directory):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            **placement,
        )
    return model.eval()


def load_config(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """Loads the configuration of a model as transformers has it, with the model's own rope.

    Args:
        directory: A Hugging Face snapshot.
        trust_remote_code: Runs the snapshot's own Python.

    Raises:
        MissingDependencyError: transformers is not installed.
        SourceError: transformers cannot load it.
    """
    transformers = require("transformers", "quantize")
    facts = ModelFacts.from_directory(directory)
    with _explained(directory):
        config = transformers.AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trust_remote_code
        )
    # transformers 4 overlooks the rope keys that transformers 5 writes.
    config.rope_theta, config.rope_scaling = facts.rotary_base, facts.rotary_scaling
    return config


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    try:
        fix = "Set model.at_once to layer, where it is not, or use a machine with more memory"
        with explained_memory("memory ran out during the loading of the model", fix):
            yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise SourceError(
            "transformers cannot load the model",
            where=str(directory),
            why=str(error).strip().partition("\n")[0],
        ) from error
