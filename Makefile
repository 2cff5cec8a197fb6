# Few targets; CI runs the same ones. Only Python >= 3.11 is needed for `make serve`.
PYTHON ?= python3
VENV ?= .venv
PYTHONS ?= 3.11 3.12 3.13 3.14 3.15
RUN = $(VENV)/bin/python

.PHONY: serve test pythons lint types calls load image clean

serve:  ## serve the demo application; honours APP, HOST, PORT, WORKERS, THREADS and every EPOLLARD_*
	@PYTHONPATH=app exec $(PYTHON) -m epollard

$(VENV)/test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/dev: $(VENV)/test
	$(RUN) -m pip install --quiet --editable '.[dev]'
	@touch $@

test: $(VENV)/test  ## the whole suite; container tests skip where there is no Docker; ARGS='-k word' chooses
	$(RUN) -m pytest -n 4 --ignore=tests/container $(ARGS) || test $$? = 5  # 5: ARGS chose none of these
	$(RUN) -m pytest tests/container $(ARGS) || test $$? = 5

pythons:  ## the whole suite on each version of Python; container tests run where the version is this machine's
	tests/on-pythons $(PYTHONS)

lint: $(VENV)/dev
	$(RUN) -m ruff check app tests loadtests examples docker
	$(RUN) -m ruff format --check app tests loadtests examples docker

types: $(VENV)/dev
	$(RUN) -m mypy

calls: $(VENV)/test  ## Python calls a request, the same on any machine
	$(RUN) loadtests/calls.py

load: $(VENV)/dev  ## Locust, headless, against a server started for it
	$(RUN) loadtests/run.py

image:
	docker build --tag epollard .

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
