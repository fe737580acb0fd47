"""Throughput and latency of running servers, whoever started them."""

from pipeline.bench.interleaved import measure_interleaved
from pipeline.bench.load import Measurement, measure
from pipeline.bench.output import print_results
from pipeline.bench.prompts import PROMPTS

__all__ = ["PROMPTS", "Measurement", "measure", "measure_interleaved", "print_results"]
