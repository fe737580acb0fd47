# The stock Triton container with an sshd, over which the first pod of a group starts the ranks of the
# others; for engines with more ranks than a node has GPUs. Build from the root of the project:
#   docker build --file docker/multinode.Dockerfile --tag trtllm-pipeline-multinode .
# The image must be the one whose TensorRT built the engine: engine.json beside the engine names it.
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.06-trtllm-python-py3
FROM ${TRITON_IMAGE}

USER 0:0
# The version is the image's distribution's: an exact one would be gone with its next update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client openssh-server \
    && rm -rf /var/lib/apt/lists/*

ENV HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1

# The image's own unprivileged user, triton-server.
USER 1000:1000
EXPOSE 8000 8001 8002
