# make report              the smoke study and its report, in report/smoke/
# make report STUDY=laptop the same for another file of params/; where results are committed, from these
# make report STUDY=laptop AGAIN=1      its cases anew, although there are results
# make sweep STUDY=laptop  the study's other ratios and lengths of pre-training, then its report again
# make seeds STUDY=laptop  the study's cases with more seeds, then its report again
# make test                all tests
# make recover STUDY=laptop    after a kill -9: end what was left running, let the next `make report` in
# make soak                ten minutes of kills, damage and full disks: what was lost
# make bench               speed against transformers and lightly, and against the machine's limits
# make lint                ruff and mypy
# make lab                 JupyterLab
# make env                 only the environment, in .venv/
# make env TORCH=cpu       without CUDA's libraries, for a machine without a GPU (with report and test, too, the first time)
# make help                these lines

PYTHON ?= python3
STUDY  ?= smoke
VENV   ?= .venv
TORCH  ?=
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEV    := $(VENV)/.ready-dev

export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: report sweep seeds test recover soak bench lint lab env help
report: $(READY)
	snakemake $(if $(AGAIN),--forceall) --configfile params/$(STUDY).yaml
	@echo "the report: report/$(STUDY)/index.html and report/$(STUDY)/report.pdf"

sweep seeds: $(READY)
	snakemake $@ $(if $(AGAIN),--forceall) --configfile params/$(STUDY).yaml
	snakemake --forcerun ablations report --configfile params/$(STUDY).yaml

test: $(DEV)
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

recover: $(READY)
	mae-core recover params/$(STUDY).yaml

soak: $(DEV)
	python tests/soak.py

bench: $(DEV)
	python -m benchmarks

lint: $(DEV)
	ruff check .
	ruff format --check .
	mypy

lab: $(READY)
	jupyter lab notebooks

env: $(DEV)

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# uv installs the same versions as pip in a third of the time; pip remains for where uv cannot be had or finds no index.
# TORCH names a backend of torch, such as cpu or cu130: https://docs.astral.sh/uv/guides/integration/pytorch/
define install
@python -m pip install --quiet -c constraints.txt uv && \
  uv pip install --quiet --python $(BIN)/python --compile-bytecode $(if $(TORCH),--torch-backend $(TORCH)) $(1) || \
  { echo "uv could not install the environment; pip tries" >&2; \
    python -m pip install --quiet $(if $(TORCH),--extra-index-url https://download.pytorch.org/whl/$(TORCH)) $(1); }
@touch $@
endef

# The report needs less than the tests: peers of the benchmark, a type checker and the like come with the first test.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, and $(PYTHON) is older: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(call install,-c constraints.txt -e .)

$(DEV): $(READY)
	$(call install,-c constraints.txt -e ".[dev]")
