# Two commands for a fresh clone: `make demo` and `make test`. Needs Python 3.11 or newer, pip and make.
PYTHON ?= python3.11
RUN = $(PYTHON) dev.py
ARGS ?=

.PHONY: demo evidence evidence-gpu docs test test-all lint format results test-ray bench-speed bench-gpu bench-serve clean

demo:  ## environment, then the main job on the embedded digits; report in runs/demo/report.html
	$(RUN) none -- sdb demo --out runs/demo --overwrite $(ARGS)

test: lint  ## environment, lint, types, tests
	$(RUN) test -- pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-all: lint  ## also the slow tests
	$(RUN) test -- pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint:
	$(RUN) test -- ruff check .
	$(RUN) test -- ruff format --check .
	$(RUN) test -- ty check src

format:
	$(RUN) test -- ruff check --fix .
	$(RUN) test -- ruff format .

docs:  ## the documents as a site, build/site/index.html; a broken link is an error
	$(RUN) docs -- mkdocs build --strict $(ARGS)

results:  ## docs/results.md and the README's table from docs/results/*.json
	$(RUN) test -- python benchmarks/protection.py --write

evidence:  ## the evidence table, piece by piece: ARGS="--data cifar10 --data-root DIR", and --plan for what is missing
	$(RUN) test -- python benchmarks/evidence.py $(ARGS)
	$(RUN) test -- python benchmarks/protection.py --write

evidence-gpu:  ## the same with larger networks on a GPU, both CIFARs at once: ARGS="DIR SECONDS"
	$(RUN) test -- bash benchmarks/evidence_gpu.sh $(ARGS)

bench-serve:  ## latency and throughput of sdb serve beside bare ONNX Runtime
	$(RUN) test -- python benchmarks/serving.py $(ARGS)

SPEED = docs/results/speed

bench-speed:  ## every speed benchmark on this CPU, then docs/speed.md; half an hour, on a machine that does nothing else
	$(RUN) test -- python benchmarks/training_step.py --rounds 3 --out $(SPEED)/training-cpu.json
	$(RUN) test -- python benchmarks/data_path.py --out $(SPEED)/data-path-cpu.json $(ARGS)
	$(RUN) test -- python benchmarks/audit_workers.py --out $(SPEED)/audit-cpu.json
	$(RUN) test -- python benchmarks/memory.py --out $(SPEED)/memory-cpu.json
	$(RUN) test -- python benchmarks/speed_page.py

test-ray:  ## a cluster of two nodes on this machine, one of them killed; needs root, four to five minutes
	$(RUN) test,ray -- pytest tests/integration/test_ray.py $(ARGS)

bench-gpu:  ## what is to be measured on a GPU: ARGS="--data-root DIR"
	$(RUN) test -- python benchmarks/gpu.py $(ARGS)

clean:
	rm -rf .venv runs build dist
