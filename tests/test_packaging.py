"""What the package says of itself, and what it does where only the library is installed."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fera.support.lazy import lazy_names

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Run a command as where packages are missing: their finders say that there are none.
WITHOUT = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import importlib.util
found = importlib.util.find_spec
def find(name, package=None):
    return None if name.split(".")[0] in {missing!r} else found(name, package)
importlib.util.find_spec = find
from fera.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "arguments", [["demo"], ["generate", "a cat", "--trace"], ["analyze"], ["report", "x"], ["train"], ["config"]]
)
@pytest.mark.parametrize("missing", [["matplotlib"], ["rich", "pydantic", "jinja2"]])
def test_without_the_extra_a_sentence_says_what_to_install(tmp_path, arguments, missing):
    code = WITHOUT.format(missing=set(missing))
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout
    told = " ".join(done.stderr.split())
    assert told.startswith("error: ") and "pip install 'fera[train]'" in told and "Traceback" not in told
    assert all(re.search(rf"\b{name}\b", told) for name in missing)
    assert not any(tmp_path.iterdir())


def test_the_command_lines_help_needs_nothing(tmp_path):
    code = WITHOUT.format(missing={"rich", "pydantic", "matplotlib", "accelerate"})
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "train" in done.stdout


def test_a_lazy_name_keeps_the_cause(tmp_path, monkeypatch):
    """Python turns an AttributeError from within into "cannot import name", without its cause."""
    (tmp_path / "broken_module.py").write_text("import sys\nsys.no_such_thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    get = lazy_names("package", {"name": "broken_module"})
    with pytest.raises(ImportError, match="no_such_thing") as error:
        get("name")
    assert isinstance(error.value.__cause__, AttributeError)
    with pytest.raises(AttributeError, match="module 'package' has no attribute 'other'"):
        get("other")


def test_versions_are_those_of_diffusers():
    assert PROJECT["requires-python"].startswith(">=3.11")
    assert not any("tomli" in line for line in PROJECT["optional-dependencies"]["train"])
    named = {line for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert "Programming Language :: Python :: 3.11" in named and "Programming Language :: Python :: 3.10" not in named


def test_licences_are_those_of_what_is_shipped():
    texts = [(ROOT / path).read_text(encoding="utf-8") for path in PROJECT["license-files"]]
    for licence in re.split(r" AND ", PROJECT["license"]):
        assert any(licence in text or licence.replace("-2.0", "") in text for text in texts), licence


def test_the_description_stands_alone():
    """On a package index, relative links and pictures are dead."""
    page = (ROOT / PROJECT["readme"]).read_text(encoding="utf-8")
    assert all(target.startswith("https://") for target in re.findall(r"\]\(([^)]+)\)", page))


def test_messages_name_no_file_of_the_checkout():
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"FeraError\([^)]*(examples|scripts)/", text, flags=re.S), path
