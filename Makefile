# Two commands on a fresh machine with Python 3.11+ and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# quiet about what works; all that pip said is shown where it fails
INSTALL = $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
QUIETLY = > $(VENV)/install.log 2>&1 || { cat $(VENV)/install.log >&2; exit 1; }
DEMO   := runs/demo
# real fields, MIT licence: see the README there
BLOOD  := wsi_chat/datasets/samples/blood

# vLLM for CPUs, at exact versions and without resolving: its own wish for a torch build does not fit its torchvision
SERVING := .venv-serving

.PHONY: demo test test-page test-serving lint format install embedded clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    install into $(VENV); analyze a rendered cervical slide and twelve real fields of blood"
	@echo "make test    install into $(VENV) and run every check and test"
	@echo "make test-page  the page in a headless Chromium (installed with apt-get where it is missing, as root)"
	@echo "make test-serving  the same questions to transformers, vLLM and a vllm serve, in $(SERVING) (5 GB)"
	@echo "make lint    formatting, types and layers only"
	@echo "make format  format the code"
	@echo "make embedded  train the embedded checkpoint anew (MINUTES=150; restartable; BCCD=, PBC=folder for blood smears)"

# The stamps are made anew when what they depend on changes.
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "wsi-chat needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3-venv is missing (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@touch $@

# torch first and alone, so that the build that the constraint names is the one that the rest is resolved against
$(VENV)/.base: pyproject.toml constraints.txt $(VENV)/.python
	@echo "installing torch into $(VENV) (a few minutes the first time) ..."
	@$(INSTALL) torch $(QUIETLY)
	@echo "installing wsi-chat and what it needs into $(VENV) ..."
	@$(INSTALL) -e . $(QUIETLY)
	@touch $@

$(VENV)/.test: $(VENV)/.base
	@echo "installing what the tests need into $(VENV) ..."
	@$(INSTALL) -e '.[test]' $(QUIETLY)
	@touch $@

install: $(VENV)/.base

# a line for each step that takes long, also where the output is a file and bars are not drawn
demo: $(VENV)/.base
	@mkdir -p $(DEMO)
	@test -f $(DEMO)/demo.tiff || { echo "rendering a cervical slide ..."; \
	  $(BIN)/wsi-chat synth slide $(DEMO)/demo.tiff --width 4096 --height 4096 --recipe abnormal --seed 7 > /dev/null; }
	@echo "analyzing the cervical slide ..."
	@$(BIN)/wsi-chat analyze $(DEMO)/demo.tiff --specimen cervix -o $(DEMO)/cervix
	@echo "analyzing twelve fields of blood ..."
	@$(BIN)/wsi-chat analyze $(BLOOD) --specimen blood --mpp 0.075 -o $(DEMO)/blood
	@echo "reports:"; ls $(DEMO)/cervix/*/report.pdf $(DEMO)/cervix/*/report.html $(DEMO)/blood/*/report.pdf $(DEMO)/blood/*/report.html

lint: $(VENV)/.test
	@$(BIN)/ruff format --check -q . || { echo "run: make format" >&2; exit 1; }
	@$(BIN)/ruff check -q .
	@$(BIN)/lint-imports --no-cache > .lint.log 2>&1 || { cat .lint.log; rm -f .lint.log; exit 1; }
	@rm -f .lint.log
	@$(BIN)/mypy --no-error-summary
	@echo "format, lint, layers and types: ok"

format: $(VENV)/.test
	@$(BIN)/ruff format -q . && $(BIN)/ruff check -q --fix .

# whole files to each process, so that what a file shares is made once; one thread each
JOBS ?= 2
test: lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# Debian's own Chromium; nothing is fetched by playwright itself
CHROMIUM = $$(command -v chromium || command -v chromium-browser)

test-page: $(VENV)/.test
	@if [ -z "$(CHROMIUM)" ] && command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ]; then \
	  echo "installing chromium"; \
	  { apt-get update && apt-get install -y --no-install-recommends chromium; } > $(VENV)/chromium.log 2>&1 \
	    || { tail -5 $(VENV)/chromium.log >&2; exit 1; }; \
	fi
	@if [ -z "$(CHROMIUM)" ]; then \
	  echo "test-page is skipped: there is no chromium here, and it cannot be installed without root (apt-get install chromium)"; \
	else \
	  WSI_CHAT_TEST_PAGE=1 $(BIN)/python -m pytest tests/app/test_page*.py; \
	fi

# goes on where it was stopped; a GPU is used where there is one. START=folder trains a finished checkpoint further,
# e.g. START=wsi_chat/embedded
MINUTES ?= 150
BCCD    ?= ../shared/data/bccd
PBC     ?= ../shared/data/pbc
START   ?=
LEARNT   = $$(test -d $(BCCD) && echo --bccd $(BCCD)) $$(test -d $(PBC) && echo --pbc $(PBC))
embedded: $(VENV)/.base
	@test -d $(BCCD) || echo "$(BCCD) is absent: untyped blood smears are left out (BCCD=folder names the data set)" >&2
	@test -d $(PBC) || echo "$(PBC) is absent: types of white blood cells are left out (PBC=folder names the data set)" >&2
	@$(BIN)/python -m wsi_chat.training.embedded --out runs/embedded --minutes $(MINUTES) $(LEARNT) \
	  $(if $(START),--start $(START)) --export runs/embedded/final
	@$(BIN)/python -m wsi_chat.training.embedded.measure --model runs/embedded/final --out runs/embedded/measured \
	  $(LEARNT) --fields 100
	@echo "runs/embedded/final"

$(SERVING)/.installed: tests/serving/requirements.txt $(VENV)/.python
	@echo "installing into $(SERVING) (5 GB, a few minutes the first time)"
	@$(PYTHON) -m venv $(SERVING)
	@{ $(SERVING)/bin/python -m pip --disable-pip-version-check install 'uv>=0.9' \
	  && $(SERVING)/bin/uv pip install --python $(SERVING)/bin/python --no-deps -r tests/serving/requirements.txt \
	  && $(SERVING)/bin/uv pip install --python $(SERVING)/bin/python --no-deps -e .; } \
	  > $(SERVING)/install.log 2>&1 || { cat $(SERVING)/install.log >&2; exit 1; }
	@touch $@

test-serving: $(SERVING)/.installed
	@WSI_CHAT_TEST_SERVING=1 $(SERVING)/bin/python -m pytest tests/serving -W ignore -o timeout=1800

clean:
	rm -rf $(VENV) $(SERVING) runs build dist *.egg-info
