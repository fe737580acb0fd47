"""What an operator may choose: the keys of a values file, in one tree for all kinds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.recipe.section import Positive, Section

DNS_LABEL = "^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$"
"""A name of objects, with room for what is put behind it within the 63 characters of a label."""


class Values(Section):
    """All that can be chosen.

    Attributes:
        name: What the names of all objects begin with; null takes the build's.
        namespace: Where the objects go; null leaves it to kubectl or helm.
        replicas: Servers, each with an engine of its own.
    """

    name: Annotated[str, Field(pattern=DNS_LABEL)] | None = None
    namespace: Annotated[str, Field(pattern=DNS_LABEL)] | None = None
    replicas: Positive = 2
