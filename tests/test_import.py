"""What `import fera` and light commands cost and bring, and that PEFT knows FeRA whatever comes first."""

import json
import subprocess
import sys

import pytest
from peft import inject_adapter_in_model
from tiny import make_unet

import fera
from fera import FeraConfig

# Each in a fresh interpreter: what is imported, and then how FeRA is asked for.
ORDERS = {
    "fera alone": "import fera\nimport peft",
    "PEFT first": "import peft\nimport fera",
    "a part of PEFT first": "from peft.utils import get_peft_model_state_dict\nimport fera\nimport peft",
    "diffusers first": "import diffusers\nfrom diffusers import UNet2DConditionModel\nimport fera\nimport peft",
    "transformers second": "import fera\nfrom transformers import CLIPTextModel\nimport peft",
    "PEFT asked for first": "import fera\nimport importlib.util\nassert importlib.util.find_spec('peft')\nimport peft",
    "PEFT imported from within": "import fera\nfrom fera.pipelines.adapters import load_adapter\nimport peft",
    "a name": "from fera import FeraConfig\nimport peft",
    "imported twice": "import fera\nimport importlib\nimportlib.reload(fera)\nimport peft\nimportlib.reload(fera)",
}
# Much like others of them.
ALIKE = {
    "transformers first": "import transformers.utils\nimport fera\nimport peft",
    "the tuner first": "import fera.tuner\nimport peft",
    "the settings first": "from fera.tuner.config import FeraConfig\nimport peft",
    "the model first": "from fera.tuner.model import FeraModel\nimport peft",
    "all names": "from fera import *\nimport peft",
}
REGISTERED = """
import sys
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
kind = peft.PeftType.FERA
assert PEFT_TYPE_TO_CONFIG_MAPPING[kind].__name__ == "FeraConfig"
assert PEFT_TYPE_TO_TUNER_MAPPING[kind].__name__ == "FeraModel"
assert sum(one == "FERA" for one in peft.PeftType) == 1
# Nothing of ours stays in the way of imports.
assert not any(type(finder).__module__.startswith("fera") for finder in sys.meta_path)
assert not type(peft.__spec__.loader).__module__.startswith("fera")
"""

# Libraries that take long to import, and commands that must not import them.
HEAVY = {"torch", "peft", "diffusers", "transformers", "accelerate", "matplotlib", "torchmetrics", "datasets"}
LIGHT = {
    "import fera": (["-c", "import fera"], {"fera"}),
    "help": (["-m", "fera.cli", "--help"], {"fera"}),
    "version": (["-m", "fera.cli", "--version"], {"fera"}),
    "train help": (["-m", "fera.cli", "train", "--help"], {"fera", "pydantic"}),
    "config": (["-m", "fera.cli", "config"], {"fera", "pydantic"}),
    "inspect": (["-m", "fera.cli", "inspect", "{adapter}"], {"fera", "safetensors", "numpy", "rich"}),
    "data check": (["-m", "fera.cli", "data", "check", "{pictures}"], {"fera", "pydantic", "numpy", "PIL", "rich"}),
}
PROBE = """
import atexit, json, sys
atexit.register(lambda: print("\\n" + json.dumps(sorted({name.split(".")[0] for name in sys.modules}))))
import runpy
kind, what, *arguments = sys.argv[1:]
sys.argv = [what, *arguments]
exec(what) if kind == "-c" else runpy.run_module(what, run_name="__main__", alter_sys=True)
"""


def run(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_exists():
    assert fera.__version__
    for name in fera.__all__:
        assert getattr(fera, name) is not None, name
    assert set(fera.__all__) <= set(dir(fera))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fera.nothing  # noqa: B018


@pytest.mark.parametrize("order", [*ORDERS, *(pytest.param(order, marks=pytest.mark.slow) for order in ALIKE)])
def test_peft_knows_fera_whatever_comes_first(order):
    run("-c", (ORDERS | ALIKE)[order] + REGISTERED)


def test_peft_loads_an_adapter_in_a_fresh_process(tmp_path):
    """By PEFT's own functions, with nothing of fera imported but its name."""
    unet = make_unet()
    inject_adapter_in_model(FeraConfig(r=2), unet, "default")
    fera.save_adapter(unet, tmp_path / "adapter")
    unet = make_unet()
    unet.save_pretrained(tmp_path / "unet")
    code = f"""
import fera
from diffusers import UNet2DConditionModel
from peft import PeftModel, get_peft_model
unet = UNet2DConditionModel.from_pretrained({str(tmp_path / "unet")!r})
model = PeftModel.from_pretrained(unet, {str(tmp_path / "adapter")!r})
assert type(model.base_model).__name__ == "FeraModel"
unet = UNet2DConditionModel.from_pretrained({str(tmp_path / "unet")!r})
assert type(get_peft_model(unet, fera.FeraConfig(r=2)).base_model).__name__ == "FeraModel"
"""
    run("-c", code)


@pytest.mark.parametrize("command", LIGHT)
def test_light_commands_import_only_what_they_need(command, tmp_path, image_folder):
    arguments, expected = LIGHT[command]
    adapter = tmp_path / "adapter"
    if "{adapter}" in arguments:
        unet = make_unet()
        inject_adapter_in_model(FeraConfig(r=2), unet, "default")
        fera.save_adapter(unet, adapter)
    arguments = [text.format(adapter=adapter, pictures=image_folder) for text in arguments]
    probe = tmp_path / "probe.py"
    probe.write_text(PROBE)
    imported = set(json.loads(run(str(probe), *arguments).splitlines()[-1]))
    assert expected <= imported
    assert not imported & HEAVY
    if "pydantic" not in expected:
        assert "pydantic" not in imported
