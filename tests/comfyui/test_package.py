"""The folder that goes into ComfyUI: what it offers, and its example."""

import json
import subprocess
import sys
import types
from importlib import util
from pathlib import Path

import pytest

from fera.comfyui.nodes import NODES

FOLDER = Path(__file__).parents[2] / "comfyui"


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """ComfyUI's module that knows its folders."""
    module = types.ModuleType("folder_paths")
    module.models_dir = str(tmp_path)
    module.folder_names_and_paths = {}
    module.get_folder_paths = lambda name: [str(tmp_path / name)]
    module.get_filename_list = lambda name: ["style.safetensors"]
    monkeypatch.setitem(sys.modules, "folder_paths", module)
    return module


def load():
    spec = util.spec_from_file_location("fera_nodes", FOLDER / "__init__.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_package_offers_the_nodes_and_names_the_folder(folders, tmp_path):
    module = load()
    assert module.NODE_CLASS_MAPPINGS == {name: node for name, (node, _) in NODES.items()}
    assert set(module.NODE_DISPLAY_NAME_MAPPINGS) == set(NODES)
    paths, suffixes = folders.folder_names_and_paths["fera"]
    assert paths == [str(tmp_path / "fera"), str(tmp_path / "loras")] and suffixes == {".safetensors"}
    assert folders.folder_names_and_paths["fera_schedules"] == (paths, {".json"})


def test_a_link_to_a_checkout_is_enough(tmp_path):
    """Nothing installed; and ComfyUI's folder holds another by the library's name, such as the checkout itself."""
    (tmp_path / "ComfyUI" / "fera" / "docs").mkdir(parents=True)
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / "fera").symlink_to(FOLDER)
    code = (
        "import sys, types; from pathlib import Path; from importlib import util\n"
        "sys.path[:] = ['.', *(p for p in sys.path if not (Path(p) / 'fera' / '__init__.py').is_file())]\n"
        "folders = sys.modules['folder_paths'] = types.ModuleType('folder_paths')\n"
        "folders.models_dir, folders.folder_names_and_paths = '.', {}\n"
        "folders.get_folder_paths = lambda name: []\n"
        f"spec = util.spec_from_file_location('nodes', {str(tmp_path / 'custom_nodes' / 'fera' / '__init__.py')!r})\n"
        "module = util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(len(module.NODE_CLASS_MAPPINGS))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path / "ComfyUI")
    assert run.stdout.strip() == str(len(NODES)), run.stderr[-2000:]


def test_schedules_are_told_from_other_json(folders, monkeypatch):
    names = ["style-loras/schedule.json", "civitai.json"]
    monkeypatch.setattr(folders, "get_filename_list", lambda name: {"fera_schedules": names}[name])
    assert NODES["FeraLoadSchedule"][0].INPUT_TYPES()["required"]["schedule"][0] == names[:1]


def test_each_nodes_inputs_are_its_functions(folders):
    for name, (node, _) in NODES.items():
        given = node.INPUT_TYPES()
        inputs = [*given["required"], *given.get("optional", {})]
        code = getattr(node, node.FUNCTION).__code__
        taken = code.co_varnames[1 : code.co_argcount]
        assert sorted(inputs) == sorted(taken), name


EXAMPLES = sorted((FOLDER / "example_workflows").glob("*.json"))


def test_the_examples_use_all_nodes():
    graphs = [json.loads(path.read_text("utf-8")) for path in EXAMPLES]
    assert {node["type"] for graph in graphs for node in graph["nodes"]} >= set(NODES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_fit_the_nodes(folders, path):
    graph = json.loads(path.read_text("utf-8"))
    own = {node["id"]: node for node in graph["nodes"] if node["type"] in NODES}
    assert own
    for node in own.values():
        kind = NODES[node["type"]][0]
        given = kind.INPUT_TYPES()
        inputs = {name: spec[0] for name, spec in (given["required"] | given.get("optional", {})).items()}
        linked = {slot["name"]: slot["type"] for slot in node["inputs"]}
        assert linked.items() <= inputs.items()
        assert len(node["widgets_values"]) == len(inputs) - len(linked)
        assert tuple(slot["type"] for slot in node["outputs"]) == kind.RETURN_TYPES
    for number, start, slot, end, place, kind in graph["links"]:
        nodes = {node["id"]: node for node in graph["nodes"]}
        assert number in nodes[start]["outputs"][slot]["links"] and nodes[start]["outputs"][slot]["type"] == kind
        assert nodes[end]["inputs"][place]["link"] == number
