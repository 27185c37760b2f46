# `make` alone lists what there is.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
RUN := $(BIN)/python
ARGS ?=
DATA ?= data/camvid
PAPER ?=

help:            ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## */\1 @/p' Makefile | awk -F' @' '{printf "  make %-14s %s\n", $$1, $$2}'

$(BIN)/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

setup: $(BIN)/.installed    ## create .venv and install the five packages

train: setup     ## train PySA on made-up scenes, about two minutes; ARGS="--paper ..." for more
	$(RUN) train.py $(ARGS)

test: setup      ## run every test
	$(RUN) -m pytest $(ARGS)

mutants: setup    ## plant known mistakes everywhere and see that near tests catch each; ARGS="common papers/pan" for some
	$(RUN) -m tests.mutants $(ARGS)

fuzz: setup      ## thousands of hostile inputs, ARGS="--inputs 5000 --seed 1": an hour; ARGS="--seed 1 --only 7": one again
	$(RUN) -m tests.fuzz $(ARGS)

crash: setup     ## kill training 20 times, also while it writes, and compare with an uninterrupted run bit by bit
	$(RUN) -m tests.crash $(ARGS)

bench: setup     ## time and memory of each paper beside its official form, an error where outputs differ; PAPER=pan for one
	$(RUN) -m tests.bench $(PAPER) $(ARGS)

endtoend: setup  ## what train.py and eval.py do besides running networks, and what memory it takes; DATA=folder of CamVid
	$(RUN) -m tests.endtoend $(if $(wildcard $(DATA)),--data $(DATA)) $(ARGS)

growth: setup    ## what all mechanisms cost on growing maps, beside full attention; docs/cost*
	$(RUN) -m studies.cost $(ARGS)

probes: setup    ## train what each mechanism can express: five kinds of scenes, three seeds (hours; can be stopped)
	$(RUN) -m studies.probes $(ARGS)

results: setup   ## train all five and a plain network alike on CamVid; DATA=folder of CamVid (two hours; can be stopped)
	$(RUN) -m studies.results --data $(DATA) $(ARGS)

shapes-table: setup    ## train every variant of every paper, three seeds each (hours; can be stopped)
	$(RUN) -m studies.shapes_table $(ARGS)

pictures: setup  ## draw what trained networks look at and how far they see; trains what is missing, minutes each
	$(RUN) -m studies.attention
	$(RUN) -m studies.receptive_field

drawings: setup  ## draw the networks with the shapes of their maps, docs/NAME-network.svg
	$(RUN) -m tests.drawing

camvid: setup    ## train PySA on CamVid and print its table; DATA=folder of CamVid (half an hour)
	$(RUN) -m papers.pysa.evidence.camvid --data $(DATA) $(ARGS)

exercise: setup   ## write exercises/PAPER.py, its equations to be filled in, see learn/; PAPER=psanet
	$(RUN) -m learn.exercise $(PAPER)

grade: setup     ## judge exercises/PAPER.py: right, wrong and why, how fast; PAPER=psanet, ARGS="collect" for one
	$(RUN) -m learn.grade $(PAPER) $(ARGS)

explore: setup   ## docs/explore.html: touch a pixel, see five mechanisms look; trains what is missing, minutes each
	$(RUN) -m learn.explore $(ARGS)

links: setup     ## point the equation tables of the notes and the page at the right lines of code
	$(RUN) -m tests.notes

clean:           ## remove .venv and caches; runs/ stays
	rm -rf .venv .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup train test mutants fuzz crash bench endtoend growth probes results shapes-table pictures drawings camvid exercise grade explore links clean
.DEFAULT_GOAL := help
