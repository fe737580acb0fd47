"""Is it the server we think it is?"""

from __future__ import annotations

from pipeline.triton.contract import (
    ADD_SPECIAL_TOKENS,
    CHECKED,
    MODELS,
    POSTPROCESSING,
    PREPROCESSING,
    ModelContract,
    Tensor,
    served_models,
)
from pipeline.verify.check import CheckFailed, Context, Details, check
from trtllm_client import ModelMetadata


@check(
    "the server and its text model are ready and identify themselves",
    asks="health and metadata of the server and the model",
)
def readiness(context: Context) -> Details:
    """Server and model readiness, and the server's own metadata."""
    if not context.client.is_ready():
        raise CheckFailed(f"the server or its model {context.model} is not ready")
    server = context.client.metadata()
    if not server.name or not server.version:
        raise CheckFailed("the server does not say its name and version")
    return {"name": server.name, "version": server.version}


@check(
    "every model has the tensors, types and shapes of the wire contract",
    asks="the metadata of every model",
    tensors=True,
)
def wire_contract(context: Context) -> Details:
    """Metadata of all five models against :mod:`pipeline.triton.contract`.

    A model may have more tensors than the contract, because NVIDIA's own repository has. Whether
    the models answer once or stream is the repository's choice (``decoupled``).
    """
    problems: list[str] = []
    extra: list[str] = []
    decoupled: dict[str, bool] = {}
    for name, contract in served_models(not context.answers_once).items():
        if not context.has(name):
            problems.append(f"there is no model {name}")
            continue
        metadata = context.client.model_metadata(name)
        problems += [f"{name}: {problem}" for problem in _problems(contract, metadata)]
        extra += [f"{name}.{tensor}" for tensor in _extra(contract, metadata)]
        if contract.decoupled:
            decoupled[name] = metadata.decoupled
    if problems:
        raise CheckFailed("; ".join(problems[:5]), problems=problems)
    return {
        "models": list(MODELS),
        "tensors_beyond_the_contract": extra,
        "decoupled": decoupled,
    }


def _problems(contract: ModelContract, metadata: ModelMetadata) -> list[str]:
    problems = []
    for kind, wanted, found in (
        ("input", contract.inputs, metadata.inputs),
        ("output", contract.outputs, metadata.outputs),
    ):
        known = {tensor.name: tensor for tensor in found}
        for tensor in wanted:
            there = known.get(tensor.name)
            if there is None and _is_wiring(contract, tensor):
                continue
            if there is None:
                problems.append(f"{kind} {tensor.name} is missing")
                continue
            datatype = tensor.data_type.removeprefix("TYPE_").replace("STRING", "BYTES")
            if there.datatype != datatype:
                problems.append(f"{kind} {tensor.name} is {there.datatype}, not {datatype}")
            shape = there.shape[1:] if metadata.max_batch_size else there.shape
            if shape != tensor.dims:
                problems.append(f"{kind} {tensor.name} is {list(shape)}, not {list(tensor.dims)}")
    return problems


def _is_wiring(contract: ModelContract, tensor: Tensor) -> bool:
    """Whether only this repository's own models know the tensor: NVIDIA's have no optional input of
    ``postprocessing``, nor what ``preprocessing`` checks here, and no client sends either; nor does
    a request to them say whether special tokens are added, which clients send where it is declared.
    """
    if tensor.name.lower() == ADD_SPECIAL_TOKENS:
        return True
    checked = contract.name == PREPROCESSING and tensor.name.lower() in CHECKED
    return checked or (contract.name == POSTPROCESSING and tensor.optional)


def _extra(contract: ModelContract, metadata: ModelMetadata) -> list[str]:
    wanted = {tensor.name for tensor in (*contract.inputs, *contract.outputs)}
    return sorted({t.name for t in (*metadata.inputs, *metadata.outputs)} - wanted)
