"""Checks that an ensemble's wiring closes over the models it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tritonclient.grpc import model_config_pb2 as proto

from pipeline.triton.tensors import ENGINE


class _Place(NamedTuple):
    """A tensor somewhere in the data flow."""

    label: str
    tensor: Any


def check_ensemble(
    config: proto.ModelConfig, models: Mapping[str, proto.ModelConfig]
) -> Iterator[str]:
    """Checks every step's tensors, types and order.

    Args:
        config: A model with ``platform: "ensemble"``.
        models: Every model of the repository by name.

    Yields:
        One sentence per problem.
    """
    steps = list(config.ensemble_scheduling.step)
    if not steps:
        yield "there is no ensemble_scheduling step"
        return
    inputs = {tensor.name: _Place(f"input {tensor.name}", tensor) for tensor in config.input}
    producers = dict(inputs)
    consumed: set[str] = set()
    for step in steps:
        if step.model_name not in models:
            yield f"step {step.model_name} is not a model of this repository"
            continue
        model = models[step.model_name]
        if config.max_batch_size > model.max_batch_size:
            yield (
                f"max_batch_size {config.max_batch_size} is larger than the "
                f"{model.max_batch_size} of its step {step.model_name}"
            )
        yield from _outputs_of_step(step, model, producers)
    for step in steps:
        consumed.update(step.input_map.values())
        if step.model_name in models:
            yield from _inputs_of_step(step, models[step.model_name], producers)
    yield from _outputs(config, producers, inputs)
    for name in sorted(inputs.keys() - consumed):
        yield f"input {name} is not used by any step"
    yield from _order(steps, inputs.keys() | consumed - producers.keys())
    names = {step.model_name for step in steps}
    decoupled = any(
        models[name].model_transaction_policy.decoupled for name in names if name in models
    )
    # tensorrt_llm refuses a request to stream by name where it answers once.
    if "stream" in inputs and not decoupled and ENGINE not in names:
        yield "it has a streaming input but none of its steps is decoupled"


def _outputs_of_step(
    step: Any, model: proto.ModelConfig, producers: dict[str, _Place]
) -> Iterator[str]:
    outputs = {tensor.name: tensor for tensor in model.output}
    for key, value in sorted(step.output_map.items()):
        if key not in outputs:
            yield f"step {step.model_name} maps output {key}, which the model does not have"
        elif value in producers:
            yield (
                f"tensor {value} is produced twice: by {producers[value].label} and by step "
                f"{step.model_name}"
            )
        else:
            producers[value] = _Place(f"output {key} of step {step.model_name}", outputs[key])


def _inputs_of_step(
    step: Any, model: proto.ModelConfig, producers: Mapping[str, _Place]
) -> Iterator[str]:
    inputs = {tensor.name: tensor for tensor in model.input}
    for key, value in sorted(step.input_map.items()):
        if key not in inputs:
            yield f"step {step.model_name} maps input {key}, which the model does not have"
        elif value not in producers:
            yield f"input {key} of step {step.model_name} reads {value}, which nothing produces"
        else:
            taken = _Place(f"input {key} of step {step.model_name}", inputs[key])
            yield from _match(producers[value], taken)
            if getattr(producers[value].tensor, "optional", False) and not inputs[key].optional:
                yield f"{taken.label} is required but reads the optional input {value}"
    for name, tensor in sorted(inputs.items()):
        if not tensor.optional and name not in step.input_map:
            yield f"required input {name} of step {step.model_name} is not fed"


def _outputs(
    config: proto.ModelConfig, producers: Mapping[str, _Place], inputs: Mapping[str, _Place]
) -> Iterator[str]:
    for tensor in config.output:
        if tensor.name not in producers or tensor.name in inputs:
            yield f"output {tensor.name} is not produced by any step"
        else:
            yield from _match(producers[tensor.name], _Place(f"output {tensor.name}", tensor))


def _match(source: _Place, sink: _Place) -> Iterator[str]:
    have, want = (proto.DataType.Name(place.tensor.data_type) for place in (source, sink))
    if have != want:
        yield f"{source.label} is {have} but {sink.label} is {want}"
    left, right = list(source.tensor.dims), list(sink.tensor.dims)
    fits = len(left) == len(right) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(left, right, strict=True)
    )
    if not fits:
        yield f"{source.label} has dims {left} but {sink.label} has {right}"


def _order(steps: list[Any], available: set[str]) -> Iterator[str]:
    """Steps run when their inputs are there; what never runs waits for itself."""
    waiting = steps
    while waiting:
        ready = [step for step in waiting if set(step.input_map.values()) <= available]
        if not ready:
            names = ", ".join(step.model_name for step in waiting)
            yield f"the steps {names} wait for each other's outputs"
            return
        for step in ready:
            available = available | set(step.output_map.values())
        waiting = [step for step in waiting if step not in ready]
