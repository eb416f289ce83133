"""What README and docs show works: Python runs, TOML validates, commands parse, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
from adapter_cases import add_adapter
from diffusers import StableDiffusionPipeline
from PIL import Image

import fera
from fera import models as denoisers
from fera.cli.main import COMMANDS, main, module_name
from fera.comparison import read_study
from fera.generation import save_image
from fera.training import load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def named(path):
    return str(path.relative_to(ROOT))


def blocks(path, *languages):
    """Fenced blocks of some languages, with the line they start at."""
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, flags=re.M | re.S):
        if match[1] in languages:
            yield text[: match.start()].count("\n") + 2, match[2]


def pages_with(*languages):
    return [page for page in PAGES if any(blocks(page, *languages))]


def commands(path):
    """Shell commands, without prompts and comments, continued lines joined."""
    for line, block in blocks(path, "bash", "console", "sh"):
        is_session = any(text.startswith("$ ") for text in block.splitlines())
        for text in block.replace("\\\n", " ").splitlines():
            if not is_session or text.startswith("$ "):
                words = shlex.split(text.removeprefix("$ "), comments=True)
                if words:
                    yield line, words


@pytest.fixture
def working_folder(tiny_sd_dir, tmp_path, monkeypatch):
    """A folder where what the pages speak of exists, with a tiny base in the place of the emoji base."""
    monkeypatch.setattr("fera.demo.base_path", lambda: tiny_sd_dir)
    monkeypatch.setattr(denoisers.registry, "_DENOISERS", denoisers.known())  # what a page registers is forgotten
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("demo", "neon", "style", "ink")):
        pipe = add_adapter(StableDiffusionPipeline.from_pretrained(tiny_sd_dir), seed=seed)
        fera.save_adapter(pipe, Path("runs") / name / "adapter")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    for folder in ("generated", "data/my-style", "data/my-set"):
        Path(folder).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save("data/my-style/a.png")
    metadata = {"prompt": "a red heart", "seed": 0, "adapters": "runs/style=1"}
    save_image(Image.new("RGB", (8, 8)), "generated/000-a-red-heart.png", metadata)


@pytest.mark.usefixtures("working_folder")
@pytest.mark.parametrize("page", pages_with("python"), ids=named)
def test_python_runs(page):
    namespace = {"__name__": "__main__"}
    for line, code in blocks(page, "python"):
        # Newlines put errors at the page's own line numbers.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", pages_with("toml"), ids=named)
def test_toml_is_valid(page, tmp_path):
    for _, text in blocks(page, "toml"):
        (tmp_path / "config.toml").write_text(text, encoding="utf-8")
        read = read_study if "[methods." in text else load_config
        read(tmp_path / "config.toml")


@pytest.mark.parametrize("page", pages_with("bash", "console", "sh"), ids=named)
def test_commands_parse(page, monkeypatch):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in COMMANDS:
        monkeypatch.setattr(f"{module_name(name)}.run", lambda arguments: 0)
    for line, words in commands(page):
        where = f"{named(page)}:{line}: {shlex.join(words)}"
        if words[0] == "fera":
            arguments = words[1 : words.index(">")] if ">" in words else words[1:]
            assert main(arguments) == 0, where
        elif words[0] == "make":
            assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in words[1:]), where


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), f"{named(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_nothing_is_left_to_fill_in(page):
    assert not re.search(r"@@|TODO|FIXME", page.read_text(encoding="utf-8"))


def test_the_two_commands_come_first():
    _, first = next(blocks(ROOT / "README.md", "bash", "console", "python"))
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]


def test_this_checks_something():
    assert pages_with("python") and pages_with("toml") and pages_with("console")
    assert sum(words[0] == "fera" for page in PAGES for _, words in commands(page)) >= 6
