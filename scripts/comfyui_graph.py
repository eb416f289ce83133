"""Take a picture of an example workflow in ComfyUI's page (docs/images/comfyui-graph.png).

Needs chromium, playwright, and ComfyUI's page in the folder that FRONTEND names; CONTRIBUTING.md has the command.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from comfyui_server import Server, install_nodes
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
# What the examples name, so that nothing is marked as missing; the page looks at names alone.
_FILES = [
    ("checkpoints", "v1-5-pruned-emaonly.safetensors"),
    ("fera", "style/adapter_model.safetensors"),
    ("loras", "style-loras/schedule.json"),
]
# The whole graph in the middle.
_FIT = """() => {
    const canvas = window.app.canvas, nodes = window.app.graph._nodes
    const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1])) - 40
    const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0]))
    const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1]))
    const scale = Math.min(1450 / (right - left), 640 / (bottom - top))
    canvas.ds.scale = scale
    canvas.ds.offset = [90 / scale - left, 130 / scale - top]
    canvas.setDirty(true, true)
}"""
_PART = {"x": 60, "y": 110, "width": 1520, "height": 540}
_SIZE = {"width": 1600, "height": 900}


def main(workflow: Path, picture: Path) -> None:
    """Start the server, open the page with the workflow, and keep what it shows."""
    graph = json.loads(workflow.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        install_nodes(Path(folder))
        for kind, name in _FILES:
            (Path(folder) / "models" / kind / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / "models" / kind / name).touch()
        server = Server(Path(folder), page=Path(os.environ["FRONTEND"]))
        try:
            server.wait()
            with sync_playwright() as browsers:
                browser = browsers.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
                page = browser.new_page(viewport=_SIZE)
                page.goto(f"http://127.0.0.1:{server.port}/")
                page.wait_for_function("window.app && window.app.graph && window.app.extensionManager", timeout=60_000)
                page.wait_for_timeout(3000)
                page.keyboard.press("Escape")  # templates, which it offers at first
                page.evaluate("graph => window.app.loadGraphData(graph)", graph)
                page.evaluate(_FIT)
                page.wait_for_timeout(2000)
                page.screenshot(path=str(picture), clip=_PART)
                browser.close()
        finally:
            server.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
