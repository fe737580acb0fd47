"""Throughput and latency of a running server, whoever started it."""

from pipeline.bench.load import PROMPTS, Measurement, measure
from pipeline.bench.output import render_table

__all__ = ["PROMPTS", "Measurement", "measure", "render_table"]
