"""Fixtures of all tests. What they are made of is in `tiny`."""

import gc
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# Tiny models gain nothing from threads, and lose much where a machine is busy: here, and in what tests start.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from PIL import Image
from tiny import COLORS, make_sd3_pipeline, make_sd3_transformer, make_sd_pipeline, make_unet

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-ways", action="store_true", help="let layers go on the CPU the ways that they go on a GPU")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--gpu-ways"):
        from fera.tuner.fast import linear

        linear._calls_cost = lambda x: True


def pytest_collection_finish() -> None:
    # A run collects garbage each time that a part of its base goes. The modules imported by now are none.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is known of pictures is known to this run of the tests alone."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("FERA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers go the ways that they go on a GPU."""
    from fera.tuner.fast import linear

    monkeypatch.setattr(linear, "_calls_cost", lambda x: True)


@pytest.fixture
def exact_convolutions() -> Iterator[None]:
    """On a GPU, as matrix products are by default: not in TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def tiny_unet() -> Callable[..., UNet2DConditionModel]:
    """Factory: `tiny_unet()`; every call gives the same weights; keywords override its configuration."""
    return make_unet


@pytest.fixture
def tiny_sd3_transformer() -> Callable[..., SD3Transformer2DModel]:
    """Factory: `tiny_sd3_transformer()`; every call gives the same weights."""
    return make_sd3_transformer


@pytest.fixture(scope="session")
def tiny_sd_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a saved tiny StableDiffusionPipeline."""
    folder = tmp_path_factory.mktemp("bases") / "tiny-sd"
    make_sd_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sd3_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a saved tiny StableDiffusion3Pipeline."""
    folder = tmp_path_factory.mktemp("bases") / "tiny-sd3"
    make_sd3_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A flat folder of four 20x16 pictures, each with a caption file."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, (caption, color) in enumerate(COLORS.items()):
        Image.new("RGB", (20, 16), color).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption + "\n", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def only_own_denoisers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes that a test registers are known in that test alone."""
    from fera.models import known, registry

    monkeypatch.setattr(registry, "_DENOISERS", known())


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate remembers the precision of the first run of a process; every test starts without that."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)
        sys.modules["accelerate.state"].GradientState._reset_state()
