"""Runs whose blocks wait elsewhere: the same adapters, bit for bit."""

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from training_cases import assert_resumes, assert_same_adapter, log_of, power_cut, run_config

from fera.training import train
from fera.training.processes.fsdp import _refused as refused_under_fsdp
from fera.training.processes.zero_launch import _refused as refused_under_zero
from fera.training.step import compiling

PROMPTS = {"prompts": ["a red rocket"], "num_inference_steps": 2}


@pytest.fixture
def configure(tiny_sd_dir, image_folder, tmp_path):
    def make(name, **sections):
        config = run_config(tiny_sd_dir, image_folder, tmp_path / name, **sections)
        return config.model_copy(update={"data": config.data.model_copy(update={"validation_fraction": 0.25})})

    return make


def pictures(config, name):
    return Image.open(config.output_dir / "samples" / name).tobytes()


@pytest.mark.parametrize(
    ("offload", "count", "settings"),
    [
        ("disk", "auto", {"consistency_weight": 0.1}),
        ("blocks", 1, {"gradient_checkpointing": True, "use_ema": True, "ema_decay": 0.9}),
        pytest.param("blocks", 3, {"mixed_precision": "bf16"}, marks=pytest.mark.slow),
    ],
)
def test_an_offloaded_run_is_the_same_run(configure, offload, count, settings):
    plain = configure("plain", train=settings, validation=PROMPTS)
    offloading = {"offload": offload, "blocks_on_device": count}
    offloaded = configure("offloaded", train=settings | offloading, validation=PROMPTS)
    train(plain)
    train(offloaded)
    assert_same_adapter(plain, offloaded)
    for key in ("loss", "held_out_loss"):
        assert log_of(plain, key) == log_of(offloaded, key) != []
    for name in ("step-000000.png", "step-000006.png"):
        assert pictures(plain, name) == pictures(offloaded, name)


def test_offloading_is_no_other_run(configure):
    """A run that stops on the device goes on offloaded, to the same end."""
    sections = {"train": {"checkpointing_steps": 2}}
    whole, stopped = configure("whole", **sections), configure("stopped", **sections)
    offloaded = configure("stopped", train={"checkpointing_steps": 2, "offload": "disk"})
    train(whole)
    with power_cut(4):
        train(stopped)
    train(offloaded, resume=True)
    assert_same_adapter(whole, offloaded)


def test_an_offloaded_run_resumes_to_the_bit(configure):
    sections = {"train": {"checkpointing_steps": 2, "offload": "blocks"}}
    assert_resumes(configure("whole", **sections), configure("stopped", **sections), 4, "loss")


@pytest.mark.slow
def test_class_pictures_are_drawn_by_an_offloaded_base(configure, tmp_path):
    for name, offload in (("plain", "none"), ("offloaded", "blocks")):
        data = {"class_data_dir": tmp_path / f"{name}-class", "class_prompt": "a tree", "num_class_images": 2}
        data |= configure(name).data.model_dump(include={"train_data_dir", "cache_dir"})
        train(configure(name, data=data, train={"offload": offload, "steps": 2}, validation={"num_inference_steps": 2}))
    plain, offloaded = (sorted((tmp_path / f"{name}-class").glob("*.png")) for name in ("plain", "offloaded"))
    assert len(plain) == 2
    assert [Image.open(path).tobytes() for path in plain] == [Image.open(path).tobytes() for path in offloaded]


def test_compiled_blocks_that_wait_learn_the_same(configure, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    compiled = configure("compiled", train={"compile": "blocks"})
    offloaded = configure("offloaded", train={"compile": "blocks", "offload": "blocks"})
    for config in (compiled, offloaded):
        train(config)
    torch._dynamo.reset()
    assert log_of(compiled, "loss") == pytest.approx(log_of(offloaded, "loss"), rel=1e-4)


def test_a_base_in_four_bits_waits_too(configure):
    pytest.importorskip("bitsandbytes")
    settings = {"gradient_checkpointing": True}
    plain = configure("plain", train=settings)
    offloaded = configure("offloaded", train=settings | {"offload": "blocks"})
    for config in (plain, offloaded):
        train(config.model_copy(update={"quantization": "4bit"}))
    assert_same_adapter(plain, offloaded)


def test_a_base_in_floats_of_eight_bits_waits_too(configure):
    """Without checkpointing: what the backward pass needs of a layer is fetched again."""
    plain, offloaded = configure("plain"), configure("offloaded", train={"offload": "blocks"})
    for config in (plain, offloaded):
        train(config.model_copy(update={"quantization": "fp8"}))
    assert_same_adapter(plain, offloaded)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"offload": "blocks", "compile": "denoiser"}}, 'train.compile = "blocks"'),
        ({"train": {"blocks_on_device": 2}}, "train.blocks_on_device is set, but train.offload is none"),
        ({"train": {"offload": "blocks", "blocks_on_device": 0}}, "blocks_on_device"),
        ({"train": {"offload": "blocks"}, "adapter": {"full": True}}, "adapter.full trains the base's weights"),
        ({"train": {"offload": "blocks"}, "quantization": "8bit"}, "cannot move weights of quantization"),
        ({"train": {"offload": "disk"}, "quantization": "4bit"}, "files are not quantized"),
        ({"train": {"offload": "blocks"}, "quantization": "4bit"}, "train.gradient_checkpointing = true"),
    ],
)
def test_what_does_not_go_together(configure, sections, message):
    with pytest.raises(ValidationError, match=message):
        configure("run", **sections)


def test_layouts_that_share_weights_refuse(configure):
    config = configure("run", train={"offload": "blocks"})
    for refused in (refused_under_fsdp, refused_under_zero):
        assert refused(config) == ["train.offload is blocks"]
