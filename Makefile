# Every target makes the environment first if it is not there; a second call costs a fraction of a second.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test check audit kernels bench chaos lock docker-lock clean
help:
	@echo "make demo    set up from nothing and run one spoken turn on this machine"
	@echo "make test    set up from nothing and pass the tests"
	@echo "make check   ruff, mypy, and the public advisory database's answer about every pinned package"
	@echo "make audit   the last alone; fails where the database does not answer"
	@echo "make kernels interpret the CUDA kernels against PyTorch and compile them, without a GPU; some minutes"
	@echo "make chaos   break a server under load and count what its clients lose; ten minutes on two cores"
	@echo "make bench   every benchmark into perf/results/<machine>.json, a page and plots; about a quarter of an hour"
	@echo "make lock    resolve the locks again (after a change of pyproject.toml); then make docker-lock for the images"

setup:
	@$(PYTHON) requirements/bootstrap.py

demo: setup
	@$(BIN)/triton-voice demo

test: setup
	@$(BIN)/python -m pytest

# AUDIT=--report prints advisories without failing. Without a network the check says that the audit was not done.
AUDIT ?=
check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python requirements/audit.py $(AUDIT)

audit: setup
	@$(BIN)/python requirements/audit.py --strict

# Triton the language, in the version of the image for a Spark. It lies beside the environment, not in it: vLLM and torch
# would find it and use it, which is also why the project's own configuration forbids it (hence --no-config).
TRITON_LANGUAGE = $(shell sed -n 's/^triton==//p' docker/locks/cuda-aarch64-py312.txt)
KERNELS = .venv/triton-$(TRITON_LANGUAGE)
kernels: setup
	@test -d $(KERNELS)/triton || $(BIN)/uv pip install --no-config --quiet --no-deps --python $(BIN)/python \
	  --target $(KERNELS) triton==$(TRITON_LANGUAGE)
	@PYTHONPATH=$(KERNELS) TRITON_INTERPRET=1 $(BIN)/python -m pytest -q \
	  tests/unit/test_magpie_kernels_interpreted.py tests/unit/test_parakeet_kernels_interpreted.py
	@PYTHONPATH=$(KERNELS) $(BIN)/python -m pytest -q tests/unit/test_kernels_compiled.py

# BENCH passes options on: make bench BENCH="--quick --only asr,tts". On a machine with the published checkpoints:
# make bench BENCH="--name dgx-spark --models DIR".
BENCH ?=
bench: setup
	@$(BIN)/triton-voice bench all $(BENCH)

chaos: setup
	@$(BIN)/python -m triton_voice_chaos faults --out perf/results/chaos

lock:
	@for arch in x86_64 aarch64; do for minor in 11 12; do \
	  $(BIN)/uv pip compile --quiet pyproject.toml --all-extras --no-annotate --no-header --no-emit-index-url \
	    --python-platform $$arch-manylinux_2_35 --python-version 3.$$minor \
	    -o requirements/cpu-$$arch-py3$$minor.txt || exit 1; done; done
	@wc -l requirements/*.txt

docker-lock: setup
	@$(BIN)/python docker/resolve.py

clean:
	rm -rf .venv build dist *.egg-info
