# Everything a newcomer runs. Each target makes its environment first (scripts/bootstrap), which is instant when nothing changed.
# Variables reach the programs either way: `make serve PORT=9000`, `PORT=9000 make serve`.

PYTHON ?= python3
BIN := .venv/bin
BOOTSTRAP := @$(PYTHON) -m scripts.bootstrap

.DEFAULT_GOAL := help
.PHONY: help up demo serve test bench lint format lock config-docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: ## the stack on Docker: qmdctl up (ARGS=--cpu without a GPU; qmdctl init writes .env first)
	$(BOOTSTRAP) cli
	@$(BIN)/qmdctl up $(ARGS)

demo: ## start the service on small models, run a search on docs/ and print it (KEEP=1: leave it running)
	$(BOOTSTRAP) demo
	@$(BIN)/python -m demo

serve: ## the service alone on 127.0.0.1:8001 until Ctrl-C (PORT=, EMBED_MODEL=, RERANK_MODEL=, DEVICE=)
	$(BOOTSTRAP) demo
	@exec $(BIN)/python -m demo.serve

test: lint ## check the style and types, run every test (ARGS="-k name", REQUIRE=node,…: missing parts fail)
	$(BIN)/python -m scripts.run_tests $(ARGS)

bench: ## measure against sentence-transformers, infinity and vLLM (ARGS=…)
	$(BOOTSTRAP) demo peers
	-$(BOOTSTRAP) peers-vllm
	@$(BIN)/python -m benchmarks $(ARGS)

lint: ## ruff and mypy
	$(BOOTSTRAP) test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: ## rewrite the code in the project's style
	$(BOOTSTRAP) test
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lock: ## write requirements/*.txt anew (ARGS=--upgrade: newest versions)
	$(BOOTSTRAP) test
	$(BIN)/python -m scripts.lock $(ARGS)

config-docs: ## write docs/configuration.md from the settings
	$(BOOTSTRAP) demo
	$(BIN)/python -m embed_service config --markdown > docs/configuration.md.new && mv docs/configuration.md.new docs/configuration.md

clean: ## remove the environments and the caches of the tools
	rm -rf .venv .venv-peers .venv-peers-vllm .mypy_cache .pytest_cache .ruff_cache .hypothesis .cache build dist *.egg-info tests/node/node_modules
