# On a machine with Python 3.11+, pip and make, each target sets up all it needs.
#   make demo      train, predict and evaluate on real images from above, five minutes on 2 cores
#   make test      the test suite
#   make check     linter, formatter, spelling, types, the documentation's links
#   make docs      the documentation as a site, site/index.html
#   make fuzz      damaged files to all that reads files: make fuzz MINUTES=20
#   make camvid    train and evaluate on CamVid, within an hour: make camvid CAMVID=folder
#   make camvid-heldout   the same without one of its drives, evaluated on that drive

PYTHON ?= python3
MINUTES ?= 20
CAMVID ?= ../shared/camvid
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := .venv/.ready

.PHONY: demo test check docs fuzz camvid camvid-heldout clean

demo: $(READY)
	rm -rf runs/demo
	$(BIN)/hmsa train configs/demo.yaml --out runs/demo/run
	$(BIN)/hmsa predict runs/demo/run examples/aerial/val/images --out runs/demo/predictions --save label,overlay,confidence,panel
	$(BIN)/hmsa evaluate runs/demo/run examples/aerial/dataset.yaml --report runs/demo/report.html

test: $(READY)
	MALLOC_ARENA_MAX=2 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0 $(ARGS)

check: $(READY) docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python docs/reference.py
	$(BIN)/zensical build --clean --strict

fuzz: $(READY)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m fuzz $(MINUTES)

# An interrupted run goes on where it stopped; a finished one is only evaluated again.
camvid: $(READY)
	$(BIN)/hmsa train configs/camvid.yaml --data $(CAMVID) --out runs/camvid --resume
	$(BIN)/hmsa evaluate runs/camvid camvid --data $(CAMVID) --split val --scales 0.5,1,2

camvid-heldout: $(READY)
	$(BIN)/hmsa train configs/camvid.yaml --set data.train=fit --data $(CAMVID) --out runs/camvid-heldout --resume
	$(BIN)/hmsa evaluate runs/camvid-heldout camvid --data $(CAMVID) --split heldout --scales 0.5,1,2

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hmsa needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv runs site docs/reference .cache
