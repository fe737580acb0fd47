# `make demo` and `make test` each work alone on a fresh checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint format clean help

help:  ## Shows this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

$(STAMP): pyproject.toml constraints.txt scripts/install
	scripts/install $(PYTHON) $(VENV)
	@touch $@

demo: $(STAMP)  ## Runs configs/demo.yaml, serves it and streams a completion
	$(BIN)/trtllm-pipeline run configs/demo.yaml
	$(BIN)/trtllm-pipeline generate --repository build/tiny-llama-int4-awq/repository \
		--max-tokens 120 "Once upon a time"
	@echo "repository: build/tiny-llama-int4-awq/repository"
	@echo "report:     build/tiny-llama-int4-awq/report.html (and .md, .json)"

test: $(STAMP)  ## Runs unit, integration and end-to-end tests
	$(BIN)/python -m pytest

lint: $(STAMP)  ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Formats the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Removes outputs, not the environment
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
