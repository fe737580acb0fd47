"""Load from client processes of its own: closed, open at a rate, or as a trace says."""

from pipeline.bench.traffic.measure import measure_load
from pipeline.bench.traffic.objectives import Objectives
from pipeline.bench.traffic.output import print_load, remark_lines
from pipeline.bench.traffic.samples import write_samples
from pipeline.bench.traffic.traces import read_trace

__all__ = [
    "Objectives",
    "measure_load",
    "print_load",
    "read_trace",
    "remark_lines",
    "write_samples",
]
