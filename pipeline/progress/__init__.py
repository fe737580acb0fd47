"""Progress of long work: bars on a terminal, plain lines elsewhere, silence in tests."""

from pipeline.progress.bars import Bars
from pipeline.progress.interface import WARNING, Progress, Silent, Task, Warnings
from pipeline.progress.lines import Lines

__all__ = ["WARNING", "Bars", "Lines", "Progress", "Silent", "Task", "Warnings"]
