# For a machine with Python 3.11 to 3.14, make and git. All but `build` and `clean` make the environment .venv first,
# where there is none.
#   make demo     build the demo's kernel and run it here, offline, as Kaggle would
#   make test     lint, types, tests
#   make lint     lint and types alone
#   make build    the kernel and its wheels, without an environment
#   make push     send what was built to Kaggle: datasets that changed, then the kernel; shows it and asks first
#   make bench    the benchmarks, in small
#   make torture  faults, fuzz and a soak of the built script, benchmarks in small: an hour
#   make parity   compile mmcv-full's own operators; compare ours with them, and the training step over both
#   make clean    delete what the others made, but not what came from Kaggle or tells what was sent there
# README.md shows the commands behind them. PYTHON=python3.12 chooses the interpreter of a new environment,
# TORCH=cpu (or index, cu128, ...) its build of torch: see `python3 -m bundle.install --help`.

PYTHON ?= python3
TORCH ?= auto
ENVIRONMENT := .venv/complete
RUN := .venv/bin/python

.PHONY: build push demo test lint bench parity clean

build:
	$(PYTHON) build_kernel.py

push: $(ENVIRONMENT)
	$(RUN) build_kernel.py push

demo: $(ENVIRONMENT)
	$(RUN) build_kernel.py --manifest bundle/members/manifest.json --dry-run

test: $(ENVIRONMENT) lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadgroup

lint: $(ENVIRONMENT)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m basedpyright
	.venv/bin/lint-imports --no-logo

# Two are left out: they need a folder of real cells (docs/measured.md, docs/accuracy.md).
BENCHMARKS := $(filter-out %/bench_retrain.py %/bench_other_tools.py,$(wildcard tests/benchmarks/bench_*.py))

bench: $(ENVIRONMENT) synthetic
	set -e; for bench in $(BENCHMARKS); do echo "== $$bench"; PYTHONPATH=.:tests $(RUN) $$bench; done

parity: $(ENVIRONMENT) dist/compiled-mmcv
	COMPILED_MMCV_PYTHON=dist/compiled-mmcv/bin/python $(RUN) -m pytest -v -k compiled_mmcv tests

# The same bytes and the goldens under other interpreters and versions; LEGS="oldest next" chooses (tests/matrix.py).
.PHONY: matrix
matrix: $(ENVIRONMENT) synthetic
	$(RUN) tests/matrix.py $(LEGS)

# Faults injected into the built script, fuzzed inputs, the benchmarks in small, a soak; ends with what was survived and what was lost.
.PHONY: torture
torture: $(ENVIRONMENT) synthetic
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(RUN) tests/torture.py

# The tests' members that are made of the synthetic Mask R-CNN; `make test` makes them by itself.
.PHONY: synthetic
synthetic: $(ENVIRONMENT)
	PYTHONPATH=. $(RUN) tests/synthetic_members.py

dist/compiled-mmcv: bundle/wheels.lock.json requirements.txt
	PYTHONPATH=.:tests $(RUN) tests/compiled_mmcv.py $@

# The file is written last: an environment without it was interrupted, and is installed again.
$(ENVIRONMENT): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 14) else "Python 3.11 to 3.14 is needed, this is %d.%d: say which by PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(RUN) -m bundle.install --torch=$(TORCH)
	touch $@

clean:
	chmod -R u+w dist 2>/dev/null || true
	if [ -d dist ]; then find dist -mindepth 1 -maxdepth 1 ! -name runs ! -name 'weights-*' ! -name '*.json' -exec rm -rf {} +; fi
	rm -rf .venv bundle/synthetic/weights/cascade.safetensors bundle/synthetic/weights/htc.safetensors
