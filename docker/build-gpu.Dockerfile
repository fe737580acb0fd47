# Where a recipe for a GPU runs as a Job: in the image that serves, so that the engine is built with the
# TensorRT that will read it. Build from the root of the project:
#   docker build --file docker/build-gpu.Dockerfile --tag trtllm-pipeline-build-gpu .
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.06-trtllm-python-py3
FROM ${TRITON_IMAGE}

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY model_repo model_repo
COPY pipeline pipeline
USER 0:0
# The image has PyTorch, transformers and ModelOpt as its TensorRT-LLM wants them; no extra of this
# project's may replace one of them. Its Python is the distribution's, which pip leaves alone unless told.
RUN PIP_BREAK_SYSTEM_PACKAGES=1 pip install --no-cache-dir ./client .

ENV HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1

# The image's own unprivileged user, triton-server.
USER 1000:1000

ENTRYPOINT ["trtllm-pipeline"]
CMD ["--help"]
