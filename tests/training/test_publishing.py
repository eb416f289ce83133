"""Cards and uploads: what leaves the machine, and what stops before it does."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from adapter_cases import add_adapter
from diffusers import StableDiffusionPipeline
from huggingface_hub.errors import HfHubHTTPError
from listeners import train
from markdown_it import MarkdownIt
from peft import PeftModel
from PIL import Image
from safetensors import safe_open
from training_cases import run_config

import fera
from fera.cli.main import main
from fera.pipelines.base import load_base
from fera.training import to_toml
from fera.training.publishing.card import REPOSITORY, adapter_card, code_span, one_line, run_card
from fera.training.summary import Summary

HOSTILE = [
    "<img src=x onerror=alert(1)> <script>alert(1)</script>",
    "[click](javascript:alert(1)) ![x](http://evil.example/x.png) https://evil.example www.evil.example",
    "a\n---\nlicense: mit\n---\n# heading\n\n<b>x</b>",
    "``` `tick` ``\n```\n| a | b |\n|---|---|",
    "`",
    "a | b || c \\| d",
    "\u202eevil\u2066 \x1b[31m\x00 tab\there",
    "{{ 7 * 7 }} {% raw %} '''quotes''' \"\"\"",
    "",
]


class Hub:
    """A recorder in the place of HfApi: keeps what is uploaded."""

    def __init__(self, kept):
        self.kept, self.repos = kept, []

    def __call__(self):
        return self

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        self.repos.append((repo_id, private))
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        for path in Path(folder_path).rglob("*"):
            if path.is_file():
                target = self.kept / path.relative_to(folder_path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "uploaded")
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    return hub


@pytest.fixture
def configure(tiny_sd_dir, image_folder, tmp_path):
    def make(**settings):
        validation = {"prompts": ["a red rocket", "a blue house"], "num_inference_steps": 2, "loss_samples": 4}
        settings = {"validation": validation, "data": {"validation_fraction": 0.25}} | settings
        return run_config(tiny_sd_dir, image_folder, tmp_path / "my-style", **settings)

    return make


def summary_of(**facts):
    settings = {
        "adapter": "/home/someone/runs/style/adapter",
        "base": "/home/someone/base",
        "revision": None,
        "steps": 6,
        "samples": 12,
        "training_pictures": 4,
        "skipped_pictures": 0,
        "skipped_steps": 0,
        "average": None,
        "parameters": 25_091,
        "kappa": 1 / 128,
        "seconds": 1.0,
        "training_seconds": 1.0,
        "samples_per_second": 12.0,
        "held_out_loss_before": 1.5,
        "held_out_loss_after": 0.8,
        "versions": {"fera": "0.1.0", "torch": "2.13.0"},
    }
    return Summary(**settings | facts)


def test_a_finished_run_has_a_card(configure, tiny_sd_dir, image_folder, tmp_path, monkeypatch):
    config = configure()
    summary = train(config)
    folder = config.output_dir / "adapter"
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "samples.png",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    text = (folder / "README.md").read_text()
    assert (folder / "samples.png").read_bytes() == (config.output_dir / "samples" / "step-000006.png").read_bytes()
    assert f"Loss on pictures held out: {summary.held_out_loss_before:.4f} before" in text
    for private in (tmp_path, tiny_sd_dir, image_folder, Path.home()):
        assert str(private) not in text
    # Neither fera nor PEFT minds it.
    pipe = load_base(str(tiny_sd_dir))
    fera.load_adapter(pipe, config.output_dir)
    model = PeftModel.from_pretrained(load_base(str(tiny_sd_dir)).unet, folder)
    model.save_pretrained(folder)
    assert huggingface_hub.ModelCard.load(folder / "README.md").data.pipeline_tag == "text-to-image"
    # What it says about loading is right.
    code = re.search(r"```python\n(.*?)```", text, flags=re.S)[1]
    assert f'fera.load_adapter(pipe, "{REPOSITORY}")' in code and "path/to/the/base" in code
    namespace: dict = {}
    exec(code.replace(REPOSITORY, str(folder)).replace("path/to/the/base", str(tiny_sd_dir)), namespace)
    assert isinstance(namespace["image"], Image.Image)
    assert fera.pipelines.adapters.adapters(namespace["pipe"]) == ["default"]


@pytest.mark.parametrize("adapter", [{"plain": {"peft_type": "LORA", "r": 2}}, {"full": True}])
def test_cards_of_baselines_load_them(configure, tiny_sd_dir, adapter):
    config = configure(adapter=adapter, train={"steps": 2})
    train(config)
    text = (config.output_dir / "adapter" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, flags=re.S)[1]
    namespace: dict = {}
    place = str(config.output_dir / "adapter")
    code = code[: code.index("image =")]
    exec(code.replace(REPOSITORY, place).replace("path/to/the/base", str(tiny_sd_dir)), namespace)
    base = load_base(str(tiny_sd_dir)).unet
    inputs = (torch.ones(1, 4, 8, 8), torch.tensor([500.0]), torch.ones(1, 5, 32))
    with torch.no_grad():
        assert not torch.equal(namespace["pipe"].unet(*inputs)[0], base(*inputs)[0])
    data = huggingface_hub.ModelCard(text).data
    assert data.library_name == ("diffusers" if "full" in adapter else "peft")


def test_metadata(configure):
    config = configure(data={"validation_fraction": 0.25, "instance_prompt": "a sks dog"}).model_copy(
        update={"base": "stabilityai/stable-diffusion-xl-base-1.0", "license": "openrail++", "revision": "main"}
    )
    text = run_card(config, summary_of(), has_samples=True)
    data = huggingface_hub.ModelCard(text).data.to_dict()
    assert data == {
        "base_model": "stabilityai/stable-diffusion-xl-base-1.0",
        "base_model_relation": "adapter",
        "library_name": "fera",
        "license": "openrail++",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "fera"],
        "instance_prompt": "a sks dog",
        "widget": [{"text": "a red rocket · a blue house", "output": {"url": "samples.png"}}],
    }
    assert "from_pretrained('stabilityai/stable-diffusion-xl-base-1.0', revision='main')" in text
    assert "1.5000 before, 0.8000 after" in text and "| `train.learning_rate` | `0.01` |" in text


def test_a_base_of_this_machine_has_no_name(configure):
    for base in ("/home/someone/models/sd15", "models/../sd15", "C:\\models\\sd15", "emoji"):
        text = run_card(configure().model_copy(update={"base": base}), summary_of())
        assert "base_model" not in huggingface_hub.ModelCard(text).data.to_dict()
        assert base == "emoji" or base not in text
        assert ("fera.demo.base_path()" in text) == (base == "emoji")


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_strangers_is_only_text(configure, text):
    """A Markdown reader finds the same elements as in a card of harmless words, and no other links."""

    def elements(words):
        prompts = {"prompts": [words, words], "negative_prompt": words}
        data = {"instance_prompt": words or None, "trigger_word": words or None, "validation_fraction": 0.1}
        classes = {"class_data_dir": Path("classes"), "class_prompt": words or None}
        card = run_card(configure(validation=prompts, data=data | classes), summary_of(), has_samples=True)
        loaded = huggingface_hub.ModelCard(card)
        assert loaded.data.license is None
        assert loaded.data.widget[0]["text"] == one_line(f"{words} · {words}")
        tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(loaded.text)
        flat = [inner for token in tokens for inner in [token, *(token.children or [])]]
        assert not [token for token in flat if "html" in token.type]
        links = [token.attrs.get("href") or token.attrs.get("src") for token in flat if token.attrs]
        spans = [token.content for token in flat if token.type == "code_inline"]
        return [token.type for token in flat if not token.type.startswith("text")], links, spans

    kinds, links, spans = elements(text)
    # An empty caption is none at all, so the card says less.
    expected, harmless, _ = elements("harmless words" if text else text)
    assert kinds == expected and links == harmless
    if one_line(text):
        assert spans.count(one_line(text)) >= 3


def test_one_line_keeps_what_can_be_read():
    assert one_line("a\n b\t\x00c\u202e d") == "a b c d"
    assert one_line("日本 é 👩‍🚀") == "日本 é 👩‍🚀"
    assert code_span("a|b`c", in_table=True) == "``a\\|b`c``"


def test_training_pushes_what_it_made(configure, hub, tiny_sd_dir, tmp_path, capsys):
    config = configure(hub_private=True, push_to_hub=True)
    train(config)
    assert hub.repos == [("my-style", True)]
    uploaded = hub.kept
    assert {path.name for path in uploaded.iterdir()} == {
        "README.md",
        "samples.png",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert 'fera.load_adapter(pipe, "me/my-style")' in (uploaded / "README.md").read_text()
    assert "uploaded: https://huggingface.co/me/my-style" in capsys.readouterr().err
    for path in uploaded.iterdir():  # nothing tells where this was made
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content and str(tiny_sd_dir).encode() not in content, path.name
    with safe_open(uploaded / "adapter_model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["fera"])["config"]["base_model_name_or_path"] is None
    # It is the adapter all the same.
    pictures = []
    for folder in (uploaded, config.output_dir):
        pipe = load_base(str(tiny_sd_dir))
        fera.load_adapter(pipe, folder)
        pictures.append(fera.generation.generate(pipe, ["a red rocket"], num_inference_steps=2)[0].tobytes())
    assert pictures[0] == pictures[1]


def test_push_takes_a_run_an_adapter_and_an_edited_card(hub, tiny_sd_dir, tmp_path, capsys):
    pipe = add_adapter(StableDiffusionPipeline.from_pretrained(tiny_sd_dir))
    folder = tmp_path / "run" / "adapter"
    fera.save_adapter(pipe, folder)
    (folder / "notes.txt").write_text("mine")
    (folder / ".env").write_text("secret")
    assert main(["push", str(folder), "me/bare", "--private"]) == 0
    told = capsys.readouterr()
    assert told.out.strip() == "https://huggingface.co/me/bare/commit/1" and hub.repos == [("me/bare", True)]
    assert "not uploaded: .env, notes.txt" in " ".join(told.err.split())
    assert not (hub.kept / ".env").exists() and not (hub.kept / "notes.txt").exists()
    card = (hub.kept / "README.md").read_text()
    assert 'fera.load_adapter(pipe, "me/bare")' in card and str(tiny_sd_dir) not in card
    assert not (folder / "README.md").exists()

    (folder / "README.md").write_text(f"---\nlicense: mit\n---\nMy words about {REPOSITORY}.\n")
    assert main(["push", str(tmp_path / "run"), "me/edited"]) == 0
    assert (hub.kept / "README.md").read_text() == "---\nlicense: mit\n---\nMy words about me/edited.\n"


def test_the_base_that_a_card_names_stays_named(hub, tiny_sd_dir, tmp_path):
    pipe = add_adapter(StableDiffusionPipeline.from_pretrained(tiny_sd_dir))
    pipe.register_to_config(_name_or_path="someone/base")
    fera.save_adapter(pipe, tmp_path / "adapter")
    assert main(["push", str(tmp_path / "adapter"), "me/bare"]) == 0
    assert json.loads((hub.kept / "adapter_config.json").read_text())["base_model_name_or_path"] == "someone/base"
    assert "base_model: someone/base" in (hub.kept / "README.md").read_text()


def test_a_failed_upload_says_how_to_go_on(configure, hub, monkeypatch, capsys, tmp_path):
    config = configure(push_to_hub=True, hub_model_id="me/style", train={"steps": 1})
    (tmp_path / "run.toml").write_text(to_toml(config))

    def fail(**arguments):
        raise OSError("the network is gone")

    monkeypatch.setattr(hub, "upload_folder", fail)
    assert main(["train", str(tmp_path / "run.toml")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "the network is gone" in told and f"fera push {config.output_dir} me/style" in told
    assert (config.output_dir / "summary.json").exists()
    assert not list(config.output_dir.glob(".pushing-*"))


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        ("me/style", None, "nobody is logged in. Run `hf auth login`"),
        ("me/style", "hf_none", "HF_HUB_OFFLINE"),  # the tests run offline
        ("a/b/c", "hf_none", "is no id of a repository"),
        ("-bad-.git", "hf_none", "is no id of a repository"),
    ],
)
def test_what_cannot_be_pushed_stops_before_training(configure, tmp_path, monkeypatch, capsys, repo_id, token, message):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    config = configure(push_to_hub=True, hub_model_id=repo_id)
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert main(["train", str(tmp_path / "run.toml")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not config.output_dir.exists()


def test_a_hub_that_refuses(hub, monkeypatch, tmp_path, capsys):
    def refuse(*arguments, **settings):
        response = SimpleNamespace(status_code=403, headers={}, request=None)
        raise HfHubHTTPError('403 Forbidden: no rights under the namespace "them".\nmore', response=response)

    monkeypatch.setattr(hub, "create_repo", refuse)
    (tmp_path / "adapter.safetensors").write_text("")
    assert main(["push", str(tmp_path), "them/style"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert 'no rights under the namespace "them"' in told and "may your token write?" in told


def test_nothing_to_push(tmp_path, capsys):
    assert main(["push", str(tmp_path), "me/style"]) == 2
    assert "holds no adapter to push" in " ".join(capsys.readouterr().err.split())


def test_no_token_in_a_configuration(configure, tmp_path, capsys):
    (tmp_path / "run.toml").write_text('hub_token = "hf_x"\n' + to_toml(configure()))
    assert main(["train", str(tmp_path / "run.toml")]) == 2
    assert "unknown key 'hub_token'" in capsys.readouterr().err


def test_a_bare_adapters_card_is_valid(tiny_sd_dir, tmp_path):
    fera.save_adapter(add_adapter(StableDiffusionPipeline.from_pretrained(tiny_sd_dir)), tmp_path)
    data = huggingface_hub.ModelCard(adapter_card(fera.adapters.file.open_adapter(tmp_path))).data
    assert data.library_name == "fera" and data.base_model is None
