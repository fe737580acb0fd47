"""One interface to engines that are served, whatever they speak.

Triton's models are asked over gRPC by ``trtllm_client``; a server with OpenAI's API is asked over
HTTP by the clients here. Both take the same requests and give the same answers and errors, so
checks, load tests and commands are written once.
"""
