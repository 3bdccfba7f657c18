# The stable interface. `make demo` and `make test` start from nothing but Python 3.10 or newer.
PYTHON ?= python3
VENV   ?= .venv
PRESET ?= demo

NOTEBOOKS = train1_t2i_celeba_hq_ldm_cfg inference1_t2i_celeba_hq_ldm_cfg \
            train2_train_celeba_attribute_classifier metrics1_evaluate_celeba_hq

.PHONY: app bench bench-gpu demo export faces test test-lowest torture tour train

# The notebooks headless and in order; executed copies, also as HTML, go to outputs/<preset>/notebooks.
demo: $(VENV)/run-time
	@for name in $(NOTEBOOKS); do \
	  echo "== $$name ($(PRESET))"; \
	  LDM_PRESET=$(PRESET) $(VENV)/bin/jupyter nbconvert --log-level=WARN --execute --to notebook \
	    --output-dir "outputs/$(PRESET)/notebooks" "experiment 4/$$name.ipynb" || exit 1; \
	  $(VENV)/bin/jupyter nbconvert --log-level=WARN --to html \
	    "outputs/$(PRESET)/notebooks/$$name.ipynb" || exit 1; \
	done
	@echo "Pictures:   outputs/$(PRESET)/pictures"
	@echo "Numbers:    outputs/$(PRESET)/metrics.json"
	@echo "Notebooks:  outputs/$(PRESET)/notebooks (open the .html files)"
	@echo "Checkpoint: $$(ls -t checkpoints/*.pt checkpoints/$(PRESET)/*.pt 2>/dev/null | grep unet | head -1)"

# docs/tour.md and its pictures, from the notebooks that `make demo` executed: without their code.
TOUR = outputs/demo/tour
tour: $(VENV)/run-time
	rm -rf $(TOUR) && mkdir -p $(TOUR)
	for name in $(NOTEBOOKS); do \
	  $(VENV)/bin/jupyter nbconvert --log-level=WARN --to markdown --no-input \
	    --output-dir $(TOUR) "outputs/demo/notebooks/$$name.ipynb" || exit 1; \
	done
	$(VENV)/bin/python -m docs.tour $(TOUR) $(NOTEBOOKS)

test: $(VENV)/development
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest --numprocesses=2

# The quick suite with the oldest releases that requirements.txt allows, by uv.
QUICK_SUITE = --ignore=tests/test_full_size.py --ignore=tests/test_notebooks.py --ignore=tests/test_faults.py
test-lowest:
	uv run --isolated --python 3.11 --resolution lowest-direct --extra dev pytest $(QUICK_SUITE)

# 250 kills at random instants, half of them in bfloat16; about five minutes on two cores.
torture: $(VENV)/development
	LDM_TORTURE_KILLS=125 $(VENV)/bin/pytest tests/test_faults.py -s

# Speed on a CPU beside diffusers' script and pipeline, in about ten minutes: MINUTES=5 is shorter.
bench: $(VENV)/development
	$(VENV)/bin/python -m benchmarks.cpu $(if $(MINUTES),--minutes $(MINUTES))

# The first minutes on a GPU, in stages that each leave their result. QUICK=--quick: a CPU too.
bench-gpu: $(VENV)/run-time
	$(VENV)/bin/python -m benchmarks.gpu $(QUICK) $(if $(MINUTES),--minutes $(MINUTES))

# 24 faces with their captions, none of them chosen, from the weights that ship in assets/laptop.
faces: $(VENV)/run-time
	$(VENV)/bin/python sample.py --preset laptop --prompts assets/laptop/captions.txt --count 1 \
	  --out outputs/faces

# A run as a folder that diffusers opens: outputs/<preset>/pipeline.
export: $(VENV)/run-time
	$(VENV)/bin/python export.py --preset $(PRESET)

# A page to ask for faces, on http://127.0.0.1:7860. PORT=7861; HOST=0.0.0.0: for the whole network.
# HOST counts only on make's command line: conda and csh export a HOST that means something else.
app: $(VENV)/app
	$(VENV)/bin/python app.py --preset $(PRESET) $(if $(PORT),--port "$(PORT)") \
	  $(if $(findstring command,$(origin HOST)),--host "$(HOST)")

train: $(VENV)/run-time
	$(VENV)/bin/accelerate launch train.py --preset $(PRESET)

$(VENV)/run-time: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/app: pyproject.toml $(VENV)/run-time
	$(VENV)/bin/pip install --quiet --editable ".[page]"
	touch $@

$(VENV)/development: pyproject.toml $(VENV)/run-time
	$(VENV)/bin/pip install --quiet --editable ".[dev]"
	touch $@
