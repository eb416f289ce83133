"""ComfyUI's server in a folder of its own, with fera's nodes."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from comfyui_engine import folder

ROOT = Path(__file__).parents[1]
# Nodes that give what a checkpoint would: the emoji base is none that ComfyUI's loaders know.
EMOJI_NODES = """
import comfy.model_patcher, torch
from comfyui_emoji import emoji

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


def install_nodes(base):
    """Fera's nodes, as their page says, and those that give the emoji base, into a folder for the server."""
    (base / "custom_nodes" / "emoji").mkdir(parents=True)
    (base / "custom_nodes" / "emoji" / "__init__.py").write_text(EMOJI_NODES, "utf-8")
    (base / "custom_nodes" / "fera").symlink_to(ROOT / "comfyui")


class Server:
    """A running ComfyUI.

    Args:
        base: its folder of models, nodes and pictures.
        page: the folder of what it shows in a browser; an empty one when left out.
    """

    def __init__(self, base, page=None):
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
            + ["--disable-api-nodes", "--front-end-root", str(page or base / "page")],
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
