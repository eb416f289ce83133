"""Runs whose denoiser is compiled: the same training in fewer calls."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny import make_unet
from torch._dynamo.testing import CompileCounterWithBackend
from training_cases import assert_resumes, log_of, mixed_folder, run_config

from fera.errors import FeraError
from fera.training import train
from fera.training.step import compiling
from fera.training.step.compiling import compile_denoiser
from fera.training.trainer import Trainer

WAYS = ("blocks", "denoiser")
# A whole denoiser takes the compiler three times as long.
MOSTLY_BLOCKS = ("blocks", pytest.param("denoiser", marks=pytest.mark.slow))


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Graphs and their derivatives as in use, without the minutes that writing code for them takes."""
    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    yield
    torch._dynamo.reset()


@pytest.fixture
def configure(tiny_sd_dir, image_folder, tmp_path):
    def make(name="run", **sections):
        return run_config(tiny_sd_dir, image_folder, tmp_path / name, **sections)

    return make


def losses(config):
    train(config)
    return log_of(config, "loss")


@pytest.mark.parametrize(
    ("way", "settings"),
    [
        ("blocks", {"consistency_weight": 0.1, "gradient_checkpointing": True}),
        pytest.param("denoiser", {"consistency_weight": 0.1}, marks=pytest.mark.slow),
        pytest.param("blocks", {"gradient_accumulation_steps": 2, "mixed_precision": "bf16"}, marks=pytest.mark.slow),
        pytest.param("denoiser", {"gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param("denoiser", {"mixed_precision": "bf16"}, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_run_learns_the_same(configure, way, settings):
    plain = losses(configure("plain", train=settings))
    compiled = losses(configure("compiled", train=settings | {"compile": way}))
    assert plain == pytest.approx(compiled, rel=0.02 if "mixed_precision" in settings else 1e-3)
    assert len(set(plain)) > 1


@pytest.mark.parametrize("way", MOSTLY_BLOCKS)
def test_nothing_is_compiled_again_at_later_steps(configure, way, monkeypatch):
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiling, "BACKEND", counter)
    counts = []
    advance = Trainer.advance

    def note(trainer):
        advance(trainer)
        counts.append(counter.frame_count)

    monkeypatch.setattr(Trainer, "advance", note)
    settings = {"compile": way, "steps": 4, "consistency_weight": 0.1}
    losses(configure(train=settings, validation={"prompts": ["a red rocket"], "loss_steps": 2}))
    assert counts[0] > 0 and set(counts) == {counts[0]}


@pytest.mark.parametrize("way", MOSTLY_BLOCKS)
def test_more_sizes_than_pytorch_compiles_by_itself(way, monkeypatch, configure):
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compiling, "BACKEND", counter)
    unet = make_unet()
    compile_denoiser(unet, way)
    with torch.no_grad(), compiling.compiling(configure(train={"compile": way})):
        before = 0
        for size in range(8, 26, 2):
            unet(torch.zeros(1, 4, size, 8), 1, torch.zeros(1, 5, 32))
            assert counter.frame_count > before
            before = counter.frame_count


@pytest.mark.slow  # three sizes, each compiled
def test_pictures_of_several_sizes(tmp_path, tiny_sd_dir, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    pictures = mixed_folder(tmp_path / "mixed")
    sections = {"data": {"enable_bucket": True, "resolution": 24}}
    found = []
    for name, way in (("plain", "no"), ("compiled", "denoiser")):
        config = run_config(tiny_sd_dir, pictures, tmp_path / name, train={"compile": way, "steps": 8}, **sections)
        found.append(losses(config))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_compiled_run_resumes_to_the_bit(configure):
    sections = {"train": {"compile": "denoiser", "checkpointing_steps": 2}}
    assert_resumes(configure("whole", **sections), configure("stopped", **sections), 4, "loss")


def test_compiling_is_no_other_run(configure):
    stopped = configure(train={"checkpointing_steps": 3, "steps": 3})
    train(stopped)
    further = configure(train={"checkpointing_steps": 3, "steps": 6, "compile": "blocks"})
    train(further, resume=True)
    assert len(log_of(further, "loss")) == 6


def test_blocks_that_nobody_names(monkeypatch, configure):
    for name in ("_repeated_blocks", "_no_split_modules"):
        monkeypatch.setattr(UNet2DConditionModel, name, [])
    with pytest.raises(FeraError, match='UNet2DConditionModel does not say which blocks it repeats; use "denoiser"'):
        train(configure(train={"compile": "blocks"}))


def test_a_compiler_that_fails_says_so(monkeypatch, configure):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    with pytest.raises(FeraError, match=r'cannot compile the denoiser here: .*no C\+\+ compiler.*train.compile = "no"'):
        train(configure(train={"compile": "denoiser"}))


def test_an_old_pytorch(monkeypatch, configure):
    monkeypatch.delattr(torch.compiler, "set_stance")
    with pytest.raises(FeraError, match=r"train.compile needs PyTorch 2\.6 or newer"):
        train(configure(train={"compile": "denoiser"}))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_with_the_compiler_itself(configure, way, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    plain, compiled = losses(configure("plain")), losses(configure("compiled", train={"compile": way}))
    assert plain == pytest.approx(compiled, rel=1e-3)
