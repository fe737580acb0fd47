"""What triton-inference-server/vllm_backend asks of a model, and no vLLM.

Upstream completes a config that lacks inputs and outputs, insists on decoupled responses and on
``model.json`` in the version's folder, gives that file's keys to ``AsyncEngineArgs``, and leaves
the choice of GPUs to vLLM for ``KIND_MODEL`` alone where an engine takes several.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

INPUTS = {
    "text_input": ("TYPE_STRING", False),
    "stream": ("TYPE_BOOL", True),
    "sampling_parameters": ("TYPE_STRING", True),
}


class TritonPythonModel:
    """Answers a text with the arguments that vLLM would be started with."""

    @staticmethod
    def auto_complete_config(config):
        """Adds what the config lacks."""
        given = config.as_dict()
        names = {tensor["name"] for tensor in given["input"]}
        for name, (kind, optional) in INPUTS.items():
            if name not in names:
                tensor = {"name": name, "data_type": kind, "dims": [1]}
                config.add_input({**tensor, **({"optional": True} if optional else {})})
        if not given["output"]:
            config.add_output({"name": "text_output", "data_type": "TYPE_STRING", "dims": [-1]})
        config.set_model_transaction_policy({"decoupled": True})
        config.set_max_batch_size(0)
        return config

    def initialize(self, args):
        """Reads ``model.json``."""
        config = json.loads(args["model_config"])
        assert pb_utils.using_decoupled_model_transaction_policy(config)
        path = Path(pb_utils.get_model_dir()) / "model.json"
        assert path.is_file(), f"there must be a model.json in {path.parent}"
        self.arguments = json.loads(path.read_text())
        self.arguments["kind"] = args["model_instance_kind"]

    def execute(self, requests):
        """Sends one response to each request, and its end."""
        for request in requests:
            sender = request.get_response_sender()
            text = np.array([json.dumps(self.arguments).encode()], object)
            response = pb_utils.InferenceResponse([pb_utils.Tensor("text_output", text)])
            sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
