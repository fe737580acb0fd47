from __future__ import annotations

import subprocess
import sys
import threading

from model_repo.common.orphan import EXIT_STATUS, end_with_parent
from tests.processes import started

# Its child waits forever; it ends as soon as the child is up.
PARENT = """
import subprocess, sys
child = "import time; from model_repo.common.orphan import end_with_parent; " \
    "end_with_parent(period_s=0.05); print('up', flush=True); time.sleep(100)"
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
process.stdout.readline()
"""


def test_a_process_ends_when_its_parent_is_another() -> None:
    parents = iter([5, 5, 5, 1])
    left = threading.Event()
    statuses: list[int] = []

    def leave(status: int) -> None:
        statuses.append(status)
        left.set()

    end_with_parent(parent=lambda: next(parents), period_s=0.001, leave=leave)
    assert left.wait(60)
    assert statuses == [EXIT_STATUS]


def test_a_real_orphan_ends() -> None:
    # The orphan keeps this pipe open for as long as it lives.
    with started([sys.executable, "-c", PARENT], stderr=subprocess.PIPE, text=True) as parent:
        _, errors = parent.communicate(timeout=60)
    assert (parent.returncode, errors) == (0, "")
