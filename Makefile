# Every target makes the environment first if it is not there; a second call costs a fraction of a second.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test check bench lock clean
help:
	@echo "make demo    set up from nothing and run one spoken turn on this machine"
	@echo "make test    set up from nothing and pass the tests"
	@echo "make check   ruff and mypy"
	@echo "make bench   every benchmark with modest settings, into perf/results/<machine>; about a quarter of an hour"
	@echo "make lock    resolve the locks again (after a change of pyproject.toml)"

setup:
	@$(PYTHON) requirements/bootstrap.py

demo: setup
	@$(BIN)/triton-voice demo

test: setup
	@$(BIN)/python -m pytest

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# RESULTS names the folder; on a machine with a GPU give BENCH_SIZE=full.
RESULTS ?= perf/results/$(shell hostname)
BENCH_SIZE ?= tiny
bench: setup
	@$(BIN)/triton-voice bench asr --size $(BENCH_SIZE) --plot $(RESULTS)/asr.png
	@$(BIN)/triton-voice bench asr-engine --size $(BENCH_SIZE) --plot $(RESULTS)/asr-engine.png
	@$(BIN)/triton-voice bench tts --size $(BENCH_SIZE) --plot $(RESULTS)/tts.png
	@$(BIN)/triton-voice bench tts-engine --size $(BENCH_SIZE) --plot $(RESULTS)/tts-engine.png
	@$(BIN)/triton-voice bench llm --size $(BENCH_SIZE) --plot $(RESULTS)/llm.png

lock:
	@for arch in x86_64 aarch64; do for minor in 11 12; do \
	  $(BIN)/uv pip compile --quiet pyproject.toml --all-extras --no-annotate --no-header --no-emit-index-url \
	    --python-platform $$arch-manylinux_2_35 --python-version 3.$$minor \
	    -o requirements/cpu-$$arch-py3$$minor.txt || exit 1; done; done
	@wc -l requirements/*.txt

clean:
	rm -rf .venv build dist *.egg-info
