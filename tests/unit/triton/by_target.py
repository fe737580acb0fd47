"""Configurations as the repository stage renders them, with the engine model of the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.recipe.schema import Recipe
from pipeline.targets import get_target
from pipeline.triton import config
from pipeline.triton.parameters import EngineModel
from trtllm_client import ChatTemplate


def engine_model(recipe: Recipe, engine: Mapping[str, Any]) -> EngineModel:
    """How Triton runs an engine of the recipe's target."""
    triton_model = get_target(recipe.compile.target).triton_model
    assert triton_model is not None
    return triton_model(recipe, engine)


def render_configs(
    recipe: Recipe, engine: Mapping[str, Any], template: ChatTemplate | None = None
) -> dict[str, str]:
    """The text of config.pbtxt for the five models."""
    return config.render_configs(recipe, engine, engine_model(recipe, engine), template)
