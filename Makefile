# make report              run the smoke study and write its report to report/smoke/
# make report STUDY=laptop the same for another file in params/; reuses results that are committed
# make report STUDY=laptop AGAIN=1      run its cases again, even if results exist
# make sweep STUDY=laptop  hours: run its other masking ratios and its run of equal compute, then update its report (night, too)
# make lengths STUDY=laptop    many hours: run three maskings with shorter and longer pre-training, then update its report
# make seeds STUDY=laptop  many hours: run the study's cases with more seeds, then update its report (night, too)
# make test                run all tests except the slow ones
# make recover STUDY=laptop    after a kill -9: end leftover processes so that the next `make report` can start
# make soak                inject kills, damage and full disks for ten minutes, start 500 notebooks; report what was lost
# make bench               measure speed against transformers, lightly and the machine's limits
# make gpu                 use a borrowed GPU for SECONDS=550: its tests, the race, the study speedrun; again: continue
# make gpu STUDY=paper     train as many runs of one study as fit; REHEARSE=1: tiny, on the CPU; needs no .venv/
# make lint                run ruff and mypy
# make lab                 open the notebook explore in JupyterLab
# make explore             serve it as a web page without code, on this machine only
# make env                 only create the environment, in .venv/
# make env TORCH=cpu       the same without CUDA's libraries; also works for the first `make report` or `make test`
# make help                print these lines

PYTHON ?= python3
STUDY  ?= smoke
VENV   ?= .venv
TORCH  ?=
SECONDS ?= 550
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
WEB    := $(VENV)/.ready-web
DEV    := $(VENV)/.ready-dev

# An environment works only where it was made: in a folder that was moved or copied, it is made anew. So is one whose
# first installation was killed: it can look complete.
BEGUN  := $(VENV)/.begun
MADE   := $(shell cat '$(READY)' 2>/dev/null)
STALE  := $(if $(MADE),$(if $(filter-out |$(MADE)|,|$(CURDIR)|),moved))
STALE  := $(STALE)$(shell test -f '$(BEGUN)' && { by=$$(cat '$(BEGUN)'); \
  test "$$by" = "$$PPID" || ! kill -0 "$$by" 2>/dev/null; } && echo killed)

export PATH := $(abspath $(BIN)):$(PATH)
ifeq ($(filter gpu,$(MAKECMDGOALS)),)  # which runs with what the machine has
unexport PYTHONPATH PYTHONHOME
endif
# Snakemake needs a name for its user, and a folder for its cache: a container may have neither.
export LOGNAME ?= $(shell id -un 2>/dev/null || id -u)
ifeq ($(shell test -w "$(HOME)" && echo writable),)
export XDG_CACHE_HOME ?= $(CURDIR)/.snakemake/cache
endif

.PHONY: report sweep lengths seeds study test recover soak bench gpu lint lab explore env help stale
report: study $(READY)
	$(BIN)/snakemake $(if $(AGAIN),--forceall) --configfile params/$(STUDY).yaml
	@echo "report: report/$(STUDY)/index.html and report/$(STUDY)/report.pdf"

sweep lengths seeds: %: study-with-% $(READY)
	$(BIN)/snakemake $@ $(if $(AGAIN),--forceall) --configfile params/$(STUDY).yaml
	$(BIN)/snakemake --forcerun ablations report --configfile params/$(STUDY).yaml

# What is not there is told before anything is set up. A study's file has what `make seeds` runs under more_seeds.
STUDIES = $(sort $(basename $(notdir $(1))))
study:
	@test -f params/$(STUDY).yaml || { echo "there is no params/$(STUDY).yaml: choose among $(call STUDIES,$(wildcard params/*.yaml))," \
	  "or write it" >&2; exit 1; }

study-with-%: study
	@grep -q '^$(KEY):' params/$(STUDY).yaml || { echo "params/$(STUDY).yaml has no $(KEY): add it, or choose a study that has it:" \
	  "$(call STUDIES,$(shell grep -l '^$(KEY):' params/*.yaml))" >&2; exit 1; }
study-with-%: KEY = $(subst seeds,more_seeds,$*)

test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

recover: $(READY)
	$(BIN)/mae-core recover params/$(STUDY).yaml

soak: $(DEV)
	$(BIN)/python tests/soak.py

bench: $(DEV)
	$(BIN)/python -m benchmarks

# A borrowed machine may have torch, but neither this environment nor a network to install it.
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu --seconds $(SECONDS) \
	  $(if $(filter file,$(origin STUDY)),,--study $(STUDY)) $(if $(REHEARSE),--rehearse)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: $(READY)
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/explore.ipynb

explore: $(or $(wildcard $(DEV)),$(WEB))
	JUPYTER_PATH="$(CURDIR)/mae_core/explore/page" $(BIN)/voila notebooks/explore.ipynb --template=explore --Voila.ip=127.0.0.1 --show_tracebacks=True

env: $(DEV)

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# uv installs the same versions as pip in a third of the time. pip is the fallback if uv is unavailable or finds no index.
# TORCH selects torch's backend, such as cpu or cu130: https://docs.astral.sh/uv/guides/integration/pytorch/
define install
@$(BIN)/python -m pip install --quiet -c constraints.txt uv && \
  $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode $(if $(TORCH),--torch-backend $(TORCH)) $(1) || \
  { echo "uv could not install the environment; trying pip" >&2; \
    $(BIN)/python -m pip install --quiet $(if $(TORCH),--extra-index-url https://download.pytorch.org/whl/$(TORCH)) $(1); } || \
  { rm -f $(BEGUN); exit 1; }
@pwd -P > $@
endef

# JupyterLab saves outputs into notebooks. This git filter (.gitattributes) strips them, so that running one changes nothing.
INFO  := codemirror_mode file_extension mimetype nbconvert_exporter pygments_lexer version
STRIP := '$(abspath $(BIN))/python' -m nbstripout -t --keep-id --extra-keys \
  '$(addprefix metadata.language_info.,$(INFO)) metadata.widgets cell.metadata.execution'

# The report needs less than the web page, and that less than the tests: peers of the benchmark, a type checker and the like.
$(READY): pyproject.toml constraints.txt $(if $(STALE),stale)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, but $(PYTHON) is older: use make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(if $(and $(STALE),$(filter /%,$(VENV))),echo "$(VENV) was made elsewhere or not to its end: delete it or name another VENV" >&2; exit 1)
	$(PYTHON) -m venv $(if $(STALE),--clear) $(VENV)
	@echo $$PPID > $(BEGUN)
	$(call install,-c constraints.txt -e .)
	@rm -f $(BEGUN)
	@git config filter.notebook.clean "$(STRIP)" 2>/dev/null || true  # git then sees notebooks without their outputs

$(WEB): $(READY)
	$(call install,-c constraints.txt -e ".[web]")

$(DEV): $(READY)
	$(call install,-c constraints.txt -e ".[dev]")
