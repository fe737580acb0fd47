"""Tiny Triton models for tests of the server itself."""

from __future__ import annotations

from pathlib import Path

CONFIG = """\
name: "{name}" backend: "python" max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input {{ name: "count" data_type: TYPE_INT32 dims: 1 }}
output {{ name: "index" data_type: TYPE_INT32 dims: 1 }}
instance_group {{ count: 1 kind: KIND_CPU }}
"""

# Answers 0, 1, ... count-1, one every 20 ms, from a thread of its own.
COUNTER = """\
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

import answers


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            count = int(pb_utils.get_input_tensor_by_name(request, "count").as_numpy()[0])
            sender = request.get_response_sender()
            threading.Thread(target=self.count, args=(sender, count), daemon=True).start()

    def count(self, sender, count):
        for index in range(count):
            last = index == count - 1
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
            tensor = pb_utils.Tensor("index", np.array([index], np.int32))
            sender.send(pb_utils.InferenceResponse([tensor]), flags=flags)
            time.sleep(answers.INTERVAL_S)
"""


def write_counter(repository: Path, name: str, prologue: str = "") -> Path:
    """Writes a decoupled model that counts; ``prologue`` runs first in its module."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(CONFIG.format(name=name))
    (version / "model.py").write_text(prologue + COUNTER)
    (version / "answers.py").write_text("INTERVAL_S = 0.02\n")
    return repository
