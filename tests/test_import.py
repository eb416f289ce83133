"""What `import fera` costs and brings."""

import json
import subprocess
import sys

import fera

PROBE = """
import json, sys, time
start = time.process_time()
import peft
of_peft = time.process_time() - start
before = set(sys.modules)
import fera
of_fera = time.process_time() - start - of_peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
kind = peft.PeftType.FERA
print(json.dumps({
    "added": sorted({name.split(".")[0] for name in set(sys.modules) - before}),
    "share": of_fera / of_peft,
    "registered": [PEFT_TYPE_TO_CONFIG_MAPPING[kind].__name__, PEFT_TYPE_TO_TUNER_MAPPING[kind].__name__],
}))
"""


def probe():
    """A fresh interpreter that imports peft and then fera."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_every_public_name_exists():
    assert fera.__version__
    for name in fera.__all__:
        assert getattr(fera, name) is not None, name


def test_importing_fera_registers_it_and_adds_little_to_peft():
    found = probe()
    assert found["registered"] == ["FeraConfig", "FeraModel"]
    assert "fera" in found["added"]
    # What only pipelines, training or pictures need, unless peft itself brings it.
    assert not set(found["added"]) & {
        *("diffusers", "transformers", "accelerate", "pydantic", "rich", "PIL", "matplotlib", "scipy", "torchvision")
    }
    # Of the processor's time, one over the other: a busy machine slows both.
    assert found["share"] < 0.1
