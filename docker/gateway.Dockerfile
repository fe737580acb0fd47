# The OpenAI gateway: `trtllm-pipeline gateway`, in front of servers of either target. Build from the
# root of the project:
#   docker build --file docker/gateway.Dockerfile --tag trtllm-pipeline-gateway .
FROM python:3.11-slim-bookworm

WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY client client
COPY model_repo model_repo
COPY pipeline pipeline
RUN pip install --no-cache-dir --constraint constraints.txt ./client '.[gateway]'

ENV HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1

USER 1000:1000
EXPOSE 9000

ENTRYPOINT ["trtllm-pipeline"]
CMD ["gateway", "--help"]
