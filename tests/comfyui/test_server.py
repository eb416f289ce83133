"""ComfyUI's server runs a workflow with the nodes, over its HTTP API."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from comfyui_engine import folder
from peft import inject_adapter_in_model
from PIL import Image
from tuner_cases import fill

import fera
from fera import FeraConfig

pytestmark = pytest.mark.comfyui

ROOT = Path(__file__).parents[2]
# Nodes that give what a checkpoint would: the emoji base is none that ComfyUI's loaders know.
EMOJI_NODES = """
import comfy.model_patcher, torch
from comfyui_engine import emoji

class Base:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "load", ("MODEL", "CONDITIONING", "CONDITIONING", "EMOJI")
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"prompt": ("STRING", {"default": "red heart"})}}
    @torch.no_grad()
    def load(self, prompt):
        model, pipe = emoji()
        text, empty = pipe.encode_prompt([prompt], "cpu", 1, True)
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, cpu, cpu), [[text, {}]], [[empty, {}]], pipe

class Decode:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "decode", ("IMAGE",)
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"pipe": ("EMOJI",), "latent": ("LATENT",)}}
    @torch.no_grad()
    def decode(self, pipe, latent):
        pixels = pipe.vae.decode(latent["samples"]).sample
        return ((pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1),)

class Empty:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("LATENT",)
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}
    def make(self):
        return ({"samples": torch.zeros(1, 4, 16, 16)},)

NODE_CLASS_MAPPINGS = {"EmojiBase": Base, "EmojiDecode": Decode, "EmojiEmpty": Empty}
"""


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


class Server:
    """A running ComfyUI.

    Args:
        base: its folder of models, nodes and pictures.
    """

    def __init__(self, base):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (base / "site").mkdir()
        (base / "page").mkdir()
        (base / "site" / "sitecustomize.py").write_text("import comfyui_engine; comfyui_engine.prepare()", "utf-8")
        paths = [base / "site", ROOT / "tests", ROOT / "src"]
        self.log = (base / "log.txt").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "main.py", "--cpu", "--port", str(self.port), "--base-directory", str(base)]
            + ["--disable-api-nodes", "--front-end-root", str(base / "page")],
            cwd=folder() / "ComfyUI",
            env={"PATH": "/usr/bin:/bin", "COMFYUI": str(folder()), "PYTHONPATH": ":".join(map(str, paths))},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def ask(self, path, data=None):
        """The answer to a request, from JSON."""
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", body)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def wait(self):
        """Until it answers."""
        for _ in range(240):
            assert self.process.poll() is None, Path(self.log.name).read_text()[-3000:]
            try:
                return self.ask("system_stats")
            except OSError:
                time.sleep(0.5)
        raise AssertionError(Path(self.log.name).read_text()[-3000:])

    def run(self, nodes):
        """What its history holds of a workflow, once that is done."""
        number = self.ask("prompt", {"prompt": nodes})["prompt_id"]
        for _ in range(240):
            if done := self.ask(f"history/{number}"):
                return done[number]
            time.sleep(0.5)
        raise AssertionError("the workflow does not end")

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture
def server(tmp_path):
    (tmp_path / "custom_nodes" / "emoji").mkdir(parents=True)
    (tmp_path / "custom_nodes" / "emoji" / "__init__.py").write_text(EMOJI_NODES, "utf-8")
    (tmp_path / "custom_nodes" / "fera").symlink_to(ROOT / "comfyui")
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
