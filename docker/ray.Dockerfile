# A node of a Ray cluster that serves builds: Ray, the gateway, and the server of the CPU target. Build from
# the root of the project:
#   docker build --file docker/ray.Dockerfile --tag trtllm-pipeline-ray .
# For engines of a GPU the same goes on top of the image that can read them, which has tritonserver:
#   docker build --file docker/ray.Dockerfile --build-arg BASE=nvcr.io/nvidia/tritonserver:26.06-trtllm-python-py3 \
#     --build-arg EXTRAS=gateway,ray --tag trtllm-pipeline-ray-gpu .
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
ARG EXTRAS=cpu,gateway,ray

# KubeRay's probes call it. The version is the base image's to choose.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY client client
COPY model_repo model_repo
COPY pipeline pipeline
RUN pip install --no-cache-dir --constraint constraints.txt ./client ".[${EXTRAS}]"

ENV HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    RAY_USAGE_STATS_ENABLED=0

WORKDIR /tmp
USER 1000:1000
