"""What frozen weights take, against weights that are held so."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import inject_adapter_in_model
from tiny import make_sd3_transformer, make_unet

from fera import FeraConfig
from fera.models.components import offloadable_blocks
from fera.pipelines.block_offload import offload_blocks, waiting_names
from fera.pipelines.memory import WAYS, held, ways_to_hold
from fera.pipelines.quantization import quantize

CPU = torch.device("cpu")


def kept(model):
    """Bytes of a model's parameters, and of what bitsandbytes keeps beside them."""
    total = sum(parameter.nbytes for parameter in model.parameters())
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        scales = [state.absmax] if state is not None else [getattr(parameter, "SCB", None)]
        total += sum(scale.nbytes for scale in scales if scale is not None)
    return total


@pytest.mark.parametrize("make", [make_unet, make_sd3_transformer])
@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantized_weights_take_what_is_said(make, quantization, dtype):
    pytest.importorskip("bitsandbytes")
    model = make().to(dtype)
    expected = held(model, dtype, quantization)
    quantize(model, quantization, CPU)
    assert expected.device_bytes == kept(model) and expected.host_bytes == expected.disk_bytes == 0


def test_blocks_that_wait_are_not_on_the_device():
    model = make_sd3_transformer()
    everything = held(model, torch.float32).device_bytes
    blocks = [sum(weight.nbytes for weight in block.parameters()) for block in offloadable_blocks(model)]
    for count in (1, 2):
        found = held(model, torch.float32, offload="blocks", blocks=count)
        assert found.host_bytes == sum(blocks)
        assert found.device_bytes == everything - sum(blocks) + sum(sorted(blocks)[-count:])
    offload_blocks(model, CPU, "blocks", 1)
    waiting = {*waiting_names(model)}
    assert sum(weight.nbytes for name, weight in model.named_parameters() if name in waiting) == sum(blocks)
    assert held(model, torch.float32, offload="disk").disk_bytes == sum(blocks)


def test_adapters_are_not_counted():
    model = make_unet()
    before = ways_to_hold(model, torch.bfloat16)
    inject_adapter_in_model(FeraConfig(), model, "default")
    assert ways_to_hold(model, torch.bfloat16) == before


def test_ways_go_from_the_fastest_to_the_smallest():
    with torch.device("meta"):
        model = FluxTransformer2DModel()
    ways = ways_to_hold(model, torch.bfloat16)
    assert [(way.quantization, way.offload) for way in ways] == [*WAYS]
    assert [str(way) for way in ways[:2]] == ["all on the device", 'quantization = "8bit"']
    # 11.9 billion parameters: 2 bytes each, 1, and 9 / 16.
    assert [round(way.device_bytes / 1e9, 1) for way in ways] == [23.8, 11.9, 6.7, 1.5, 0.4, 1.5]
    assert ways_to_hold(torch.nn.Linear(4, 4), torch.float32)[-1].quantization == "4bit"


def test_blocks_wait_on_the_disk_in_the_precision_of_the_files_alone(tmp_path):
    make_sd3_transformer().save_pretrained(tmp_path)
    model = type(make_sd3_transformer()).from_pretrained(tmp_path)
    assert "disk" in [way.offload for way in ways_to_hold(model, torch.float32)]
    assert "disk" not in [way.offload for way in ways_to_hold(model, torch.bfloat16)]
