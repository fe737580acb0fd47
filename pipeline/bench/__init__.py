"""Throughput and latency of a running server, whoever started it."""

from pipeline.bench.load import PROMPTS, Measurement, measure
from pipeline.bench.output import print_results

__all__ = ["PROMPTS", "Measurement", "measure", "print_results"]
