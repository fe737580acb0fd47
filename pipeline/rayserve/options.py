"""What can be chosen of the application: ``args`` of a config, arguments of ``serve run``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UsageError

Positive = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(min_length=1)]


class Options(BaseModel):
    """All that can be chosen.

    Attributes:
        repository: Folder of the repository, on every node; with it, or above it, the report.
        model: What clients call the model; null takes the build's name.
        min_replicas: Replicas that are there without traffic. Two leave no gap in an update.
        max_replicas: Replicas at most.
        gateways: Replicas of the gateway.
        surge_percent: Replicas, in percent, that an update may start before it stops old ones. They
            need room of their own; with 0 an update goes one by one in the room that is there.
        longest_stream_s: Seconds of the longest stream; null computes it from what was measured.
        replica_cpus: Processors that Ray reserves for a replica.
        gateway_cpus: Processors that Ray reserves for each replica of the gateway.
        gpus: GPUs of a replica; null takes one for each rank of the engine where it needs any.
        resume: Whether the streams of a replica that is lost go on at another.
        key_from: Environment variable with the key that clients have to send; null asks for none.
        verify: Whether each replica checks every file of the repository before it starts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    repository: Name
    model: Name | None = None
    min_replicas: Positive = 2
    max_replicas: Positive = 4
    gateways: Positive = 2
    surge_percent: Annotated[int, Field(ge=0, le=100)] = 0
    longest_stream_s: Positive | None = None
    replica_cpus: Annotated[float, Field(gt=0)] = 2
    gateway_cpus: Annotated[float, Field(gt=0)] = 1
    gpus: Annotated[int, Field(ge=0)] | None = None
    resume: bool = True
    key_from: Name | None = None
    verify: bool = True


def read_options(arguments: Mapping[str, Any]) -> Options:
    """Reads the arguments of an application.

    Args:
        arguments: From a config, or ``name=value`` of ``serve run``, where all values are texts.

    Raises:
        UsageError: One is missing, unknown or wrong; the message names all of them.
    """
    try:
        options = Options.model_validate(dict(arguments))
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'arguments'}: {problem['msg']}"
            for problem in error.errors(include_url=False)
        ]
        raise UsageError(
            "the application's arguments are wrong",
            why="; ".join(problems),
            fix=f"Arguments are {', '.join(Options.model_fields)}; repository is needed",
        ) from error
    if options.max_replicas < options.min_replicas:
        raise UsageError(
            f"max_replicas is {options.max_replicas} and min_replicas {options.min_replicas}",
            fix="Let max_replicas be as many or more",
        )
    return options
