# The server of the CPU target: serve, and the tritonserver of the nvidia-pytriton wheel. Build from the
# root of the project:
#   docker build --file docker/cpu.Dockerfile --tag trtllm-pipeline-cpu .
# `trtllm-pipeline serve build/NAME --print compose` writes the compose file that goes with it.
FROM python:3.11-slim-bookworm

WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY client client
COPY model_repo model_repo
COPY pipeline pipeline
# Serving needs neither torch nor transformers.
RUN pip install --no-cache-dir --constraint constraints.txt ./client '.[cpu]'

ENV HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1

USER 1000:1000
EXPOSE 8000 8001 8002

ENTRYPOINT ["trtllm-pipeline"]
CMD ["serve", "/models", "--host=0.0.0.0", "--log=-"]
