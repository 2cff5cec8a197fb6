# Few targets; CI runs the same ones. Only Python >= 3.11 is needed for `make serve`.
PYTHON ?= python3
VENV ?= .venv
PYTHONS ?= 3.11 3.12 3.13 3.14 3.15
RUN = $(VENV)/bin/python
# The gate: every branch of protocol/ is taken by the tests of protocol/ alone.
GATE = --cov=app/epollard/protocol --cov-fail-under=100

.PHONY: serve test coverage pythons lint types calls load image clean

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
	$(RUN) -m pytest -n 4 --ignore=tests/container $(or $(ARGS),--ignore=tests/protocol) || test $$? = 5  # 5: ARGS chose none of these
	$(if $(ARGS),,$(RUN) -m pytest -n 4 tests/protocol $(GATE))
	$(RUN) -m pytest tests/container $(ARGS) || test $$? = 5

coverage: $(VENV)/test  ## branches taken by unit tests: of protocol/, which fails under 100 %, then of everything
	$(RUN) -m pytest -q -n 4 tests/protocol $(GATE)
	$(RUN) -m pytest -q -n 4 --ignore=tests/container --ignore=tests/server --cov=app/epollard

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
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .coverage*
