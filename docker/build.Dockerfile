# Where a recipe for the CPU runs as a Job: everything from quantizing to the load test. Build from the
# root of the project:
#   docker build --file docker/build.Dockerfile --tag trtllm-pipeline-build .
FROM python:3.11-slim-bookworm

WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY client client
COPY model_repo model_repo
COPY pipeline pipeline
# Without PyTorch's CPU index here the default build of torch brings gigabytes of CUDA along.
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir --constraint constraints.txt ./client '.[quantize,cpu]'

ENV HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1

USER 1000:1000

ENTRYPOINT ["trtllm-pipeline"]
CMD ["--help"]
