"""ComfyUI's server runs a workflow with the nodes, over its HTTP API."""

import numpy as np
import pytest
from comfyui_server import Server, install_nodes
from peft import inject_adapter_in_model
from PIL import Image
from tuner_cases import fill

import fera
from fera import FeraConfig

pytestmark = pytest.mark.comfyui


def workflow(adapter):
    """The nodes and their links, as ComfyUI's "Export (API)" writes them."""
    sampler = {"seed": 1, "steps": 6, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    gate = {"adapter": "", "fixed_gate": "", "solo": "", "mute": "", "temperature": 1.0}
    nodes = {
        "base": ("EmojiBase", {"prompt": "red heart"}),
        "empty": ("EmojiEmpty", {}),
        "adapter": ("FeraLoadAdapter", {"model": ["base", 0], "adapter_name": adapter, "strength": 1.0}),
        "gate": ("FeraSetGate", {"model": ["adapter", 0], **gate, "start_percent": 0.0, "end_percent": 1.0}),
        "record": ("FeraRecordGates", {"model": ["gate", 0]}),
        "sampler": (
            "KSampler",
            {"model": ["record", 0], "positive": ["base", 1], "negative": ["base", 2], "latent_image": ["empty", 0]}
            | sampler,
        ),
        "show": ("FeraShowGates", {"trace": ["record", 1], "latent": ["sampler", 0]}),
        "decode": ("EmojiDecode", {"pipe": ["base", 3], "latent": ["show", 2]}),
        "picture": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "heart"}),
        "gates": ("SaveImage", {"images": ["show", 0], "filename_prefix": "gates"}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


@pytest.fixture
def server(tmp_path):
    install_nodes(tmp_path)
    unet = fera.demo.base_path() / "unet"
    from diffusers import UNet2DConditionModel

    denoiser = inject_adapter_in_model(FeraConfig(r=1), UNet2DConditionModel.from_pretrained(unet), "default")
    fera.save_adapter(fill(denoiser), tmp_path / "models" / "fera" / "style")
    running = Server(tmp_path)
    yield running
    running.stop()


def test_a_workflow(server, tmp_path):
    server.wait()
    listed = server.ask("object_info/FeraLoadAdapter")["FeraLoadAdapter"]["input"]["required"]["adapter_name"][0]
    assert listed == ["style/adapter_model.safetensors"]
    done = server.run(workflow(listed[0]))
    assert done["status"]["status_str"] == "success", done["status"]
    (picture,) = (tmp_path / "output").glob("heart*.png")
    assert Image.open(picture).size == (64, 64) and np.asarray(Image.open(picture)).std() > 5
    (gates,) = (tmp_path / "output").glob("gates*.png")
    assert Image.open(gates).size == (1200, 420)

    wrong = workflow(listed[0])
    wrong["gate"]["inputs"]["fixed_gate"] = "0.5, 0.5"
    failed = server.run(wrong)
    (error,) = [data for kind, data in failed["status"]["messages"] if kind == "execution_error"]
    assert error["node_id"] == "gate"
    assert "has 3 experts, and the fixed gate 2 weights" in error["exception_message"]
