# make demo: train on built-in photographs, print a table, draw a picture.
# make test: lint, types, floors, doctests, tests.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
DEMO_READY := .venv/demo-installed
TEST_READY := .venv/test-installed
# One thread: with two, OpenMP waits by spinning, and anything else that runs slows it a hundredfold.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test clean

$(DEMO_READY): EXTRAS := demo
$(TEST_READY): EXTRAS := demo,hub,tensorboard,audio,ray,ids,compare,kernels,dev
$(DEMO_READY) $(TEST_READY): pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

demo: $(DEMO_READY)
	rm -rf $(DEMO)
	$(BIN)/hqvae train hqvae --data photos --out $(DEMO) $$(cat experiments/demo.txt)
	$(BIN)/hqvae evaluate $(DEMO)
	@echo "Look at $(DEMO)/report/whole-picture.png"

test: $(TEST_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=25

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage
