# `make demo` and `make test` each work alone on a fresh checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := build/tiny-llama-int4-awq
PROMPT := Once there was a gentle boy named Jack, and he lived by the sea.

.PHONY: demo test proofs faults fuzz soak fuzzed conformance eval gpu-acceptance gpu-check gate-proof chat-proof operate-proof watch-proof kube-proof resume-proof ray-proof formats-proof sizes-proof lint format docs clean help

help:  ## Shows this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

$(STAMP): pyproject.toml client/pyproject.toml constraints.txt scripts/install scripts/install_beside.py
	scripts/install $(PYTHON) $(VENV)
	@touch $@

demo: $(STAMP)  ## Runs configs/demo.yaml, serves it and streams a completion
	@$(BIN)/trtllm-pipeline run configs/demo.yaml
	@printf '\n%s' "$(PROMPT)"
	@$(BIN)/trtllm-pipeline generate --repository $(DEMO)/repository --max-tokens 300 "$(PROMPT)"
	@printf '\nrepository: %s/repository\nreport:     %s/report.html (and .md, .json)\n' $(DEMO) $(DEMO)

test: $(STAMP)  ## Every test; with COVERAGE=1 also how much of the code they reach
	scripts/test $(BIN)/python $(if $(COVERAGE),coverage)

proofs: $(STAMP)  ## Further cases that take long, of what the tests show
	$(BIN)/python -m pytest tests -m proof

faults: $(STAMP)  ## Breaks the served demo in every way there is a test for, with a table
	@$(BIN)/trtllm-pipeline run configs/demo.yaml
	TRTLLM_PIPELINE_FAULTS_REPOSITORY=$(DEMO)/repository $(BIN)/python -m pytest tests/faults \
	  tests/integration/test_server.py -m "faults or injected" \
	  --faults-report build/faults.json --junitxml build/faults.xml

FUZZED := build/fuzzed
FUZZ ?= 10000
SOAK ?= 10
# What both serve: the demo with all that a request may ask for.
fuzzed: $(STAMP)
	@$(BIN)/trtllm-pipeline run configs/demo.yaml --set name=fuzzed --set serve.decoupled=both \
	    --set serve.guided_decoding=xgrammar --until verify

fuzz: fuzzed  ## FUZZ=10000 requests, right and wrong ones, with SEED=; what must not be is in build/fuzz
	$(BIN)/python -m tests.fuzz --repository $(FUZZED)/repository --requests $(FUZZ) $(if $(SEED),--seed $(SEED))

soak: fuzzed  ## SOAK=10 minutes of mixed load, with SEED=; fails on growth; readings are in build/soak
	$(BIN)/python benchmarks/soak.py --repository $(FUZZED) --minutes $(SOAK) $(if $(SEED),--seed $(SEED))

conformance: $(STAMP)  ## Every check of verify against the demo's repository, thorough ones too
	$(BIN)/trtllm-pipeline verify --repository $(DEMO)/repository --all

eval:  ## The environment of the command lm-eval, beside the other one
	scripts/install-eval $(PYTHON) $(VENV)-eval

gpu-acceptance: $(STAMP)  ## On a machine with a GPU and docker: the TensorRT target, with a report
	scripts/gpu-acceptance

gpu-check: $(STAMP)  ## On a machine with CUDA: what needs no TensorRT, as build/gpu-check.json
	scripts/gpu-check

gate-proof: $(STAMP)  ## Damages what was written in many ways, and counts what the gates miss
	$(BIN)/python benchmarks/gate_proof.py

chat-proof: $(STAMP)  ## A chat model of each architecture and format, from init to an answer
	TRTLLM_PIPELINE_CHAT_PROOF=1 $(BIN)/python -m pytest -s tests/e2e/test_first_hour.py

# llama.cpp's own quantizer, as an npm package has it.
LLAMA := build/llama-library
formats-proof: $(STAMP)  ## Files for llama.cpp byte by byte against its own quantizer, and further cases of formats
	mkdir -p $(LLAMA) && cd $(LLAMA) && npm pack --silent @node-llama-cpp/linux-x64@3.22.1 && tar xzf *.tgz
	TRTLLM_PIPELINE_LLAMA_LIBRARY=$(abspath $(LLAMA)) $(BIN)/python -m pytest -m proof tests/integration/test_gguf_quantizer.py
	$(BIN)/python -m pytest -m proof tests/integration/test_unified_folder.py tests/e2e/test_llm_api.py

# The official client of the major version before the one that is installed.
OPENAI_1 := build/openai-1
operate-proof: $(STAMP) watch-proof kube-proof  ## The gateway with the official OpenAI client, in two majors
	$(BIN)/python -m pip install --quiet --target $(OPENAI_1) --upgrade --no-deps \
	  openai==1.109.1 distro==1.9.0 httpx==0.28.1 sniffio==1.3.1 tqdm
	$(BIN)/python -m pytest tests/e2e/test_gateway_openai.py
	PYTHONPATH=$(OPENAI_1) $(BIN)/python -m pytest tests/e2e/test_gateway_openai.py

watch-proof: $(STAMP)  ## Rules and dashboard with Debian's Prometheus and Grafana's own types, under load, with a table
	scripts/watch-tools build/operate
	@$(BIN)/trtllm-pipeline run configs/demo.yaml
	TRTLLM_PIPELINE_WATCHED=$(DEMO) $(BIN)/python -m pytest -s tests/unit/monitoring tests/e2e/test_watched.py \
	  -m "proof or not proof"

kube-proof: $(STAMP)  ## Every manifest in helm and in the validators, with values of all kinds (fetches helm)
	scripts/kube-tools build/operate/helm
	$(BIN)/python -m pytest tests/unit/manifests tests/unit/test_docker_files.py -m "proof or not proof"

resume-proof: $(STAMP)  ## Kills the demo's server 50 times under 16 streams, and counts what clients see of it
	@$(BIN)/trtllm-pipeline run configs/demo.yaml
	$(BIN)/python -m tests.faults.resume_proof --repository $(DEMO)/repository

RAY := $(VENV)-ray
ray-proof: $(STAMP)  ## Two Ray nodes here: scaled, a replica killed, updated, under load (installs Ray into .venv-ray)
	scripts/install-ray $(PYTHON) $(RAY)
	@$(BIN)/trtllm-pipeline run configs/demo.yaml
	$(RAY)/bin/python -m pytest -q tests/unit/rayserve
	scripts/ray-proof $(RAY) --repository $(DEMO)

sizes-proof: $(STAMP)  ## Memory and time by layer and whole, peaks by depth, kills: a part of benchmarks/sizes.py
	mkdir -p build
	$(BIN)/python benchmarks/sizes.py --table --sizes 0.1 --formats int4_awq int8_sq --slope --layers 12 24 \
	  --kills 5 --killed-size 0.1 --tokens 1000 --folder build --json build/sizes.json

lint: $(STAMP)  ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Formats the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)  ## Writes docs/recipe.md, docs/recipe.schema.json, docs/conformance.md and the table of README.md from the code
	$(BIN)/trtllm-pipeline schema > docs/recipe.schema.json
	$(BIN)/trtllm-pipeline schema --markdown > docs/recipe.md
	$(BIN)/trtllm-pipeline verify --list --markdown > docs/conformance.md
	$(BIN)/trtllm-pipeline targets --into README.md

clean:  ## Removes outputs, not the environment
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.*
