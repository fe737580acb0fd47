"""The CPU target: a checkpoint as an OpenVINO model that OpenVINO GenAI batches in flight.

Importing this package is cheap; OpenVINO is imported when something is compiled.
"""

from pipeline.targets.openvino.target import OpenVinoTarget

__all__ = ["OpenVinoTarget"]
