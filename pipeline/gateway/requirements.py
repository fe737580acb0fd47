"""The packages that a gateway needs. Standard library only."""

from __future__ import annotations

from pipeline.dependencies import Requirements

REQUIREMENTS: Requirements = tuple(
    (name, "gateway") for name in ("fastapi", "uvicorn", "tokenizers", "prometheus_client")
)
"""Modules, each with the extra that installs it."""
