"""What is in an adapter's files, and what is refused."""

import json
import pickle
import stat
import zipfile

import pytest
import torch
from adapter_cases import TARGETS, add_adapter, denoiser_of, make_pipeline, write_adapter
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fera
from fera import FeraConfig, FeraError
from fera.adapters.file import open_adapter
from fera.adapters.file import write_adapter as write
from fera.format import CONFIG, FORMAT_VERSION, WEIGHTS


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return write_adapter("sd", tmp_path_factory.mktemp("adapters") / "ink", kappa=1 / 64, temperature=0.5)


@pytest.fixture
def copied(adapter, tmp_path):
    """A copy to damage."""
    folder = tmp_path / "ink"
    folder.mkdir()
    for name in (WEIGHTS, CONFIG):
        (folder / name).write_bytes((adapter / name).read_bytes())
    return folder


def edit_config(folder, **changes):
    settings = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(settings))
    return folder


def rewrite(folder, tensors=None, metadata=None):
    with safe_open(folder / WEIGHTS, "pt") as file:
        old = file.metadata()
    save_file(load_file(folder / WEIGHTS) if tensors is None else tensors, folder / WEIGHTS, metadata or old)
    return folder


# What is written


def test_files_are_pefts_and_keys_but_for_the_experts_sides(adapter):
    assert {path.name for path in adapter.iterdir()} == {WEIGHTS, CONFIG}
    keys = load_file(adapter / WEIGHTS).keys()
    assert all(key.startswith("base_model.model.") for key in keys)
    experts = [key for key in keys if "fera.router" not in key]
    assert all(key.endswith((".experts_A.weight", ".experts_B.weight")) for key in experts)
    router = [key for key in keys if key not in experts]
    assert sorted(key.rpartition("fera.router.")[2] for key in router) == [
        "hidden.bias",
        "hidden.weight",
        "output.bias",
        "output.weight",
    ]


def test_the_file_alone_says_everything(adapter, tmp_path):
    beside = open_adapter(adapter)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((adapter / WEIGHTS).read_bytes())
    assert open_adapter(alone).config == beside.config
    assert open_adapter(alone).versions == beside.versions
    config = beside.config
    assert (config.r, config.lora_alpha, config.kappa, config.temperature) == (2, 4, 1 / 64, 0.5)
    assert config.target_modules == set(TARGETS)
    assert config.format_version == FORMAT_VERSION
    assert config.base_fingerprint["class"] == "UNet2DConditionModel"
    assert set(beside.versions) == {"fera", "peft", "torch"}
    assert beside.metadata["format"] == "pt"


def test_the_base_is_named(tmp_path, tiny_sd_dir):
    from diffusers import StableDiffusionPipeline

    pipe = add_adapter(StableDiffusionPipeline.from_pretrained(tiny_sd_dir))
    fera.save_adapter(pipe, tmp_path)
    assert open_adapter(tmp_path).config.base_model_name_or_path == str(tiny_sd_dir)


def test_shapes_without_reading_weights(adapter):
    file = open_adapter(adapter)
    assert file.shapes == {key: tuple(tensor.shape) for key, tensor in file.tensors().items()}


def test_sets_are_written_in_one_order(adapter):
    settings = json.loads((adapter / CONFIG).read_text())
    assert settings["target_modules"] == sorted(TARGETS)
    assert settings["inference_mode"] is True


def test_a_failed_write_leaves_the_old_files(adapter, copied, monkeypatch):
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    pipe = add_adapter(make_pipeline("sd"), seed=5)

    def full(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fera.adapters.file.save_tensors", full)
    with pytest.raises(FeraError, match="cannot write the adapter to .*: No space left on device"):
        fera.save_adapter(pipe, copied)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(FeraError, match="cannot write the adapter to"):
        fera.save_adapter(add_adapter(make_pipeline("sd")), tmp_path / "taken")


def test_files_are_as_readable_as_others(adapter, tmp_path):
    (tmp_path / "other").write_text("")
    mode = stat.S_IMODE((tmp_path / "other").stat().st_mode)
    assert {stat.S_IMODE(path.stat().st_mode) for path in adapter.iterdir()} == {mode}


def test_write_needs_a_routed_adapter(tmp_path):
    with pytest.raises(FeraError, match="no FeRA adapter 'ink' to save; there are: default"):
        write(denoiser_of(add_adapter(make_pipeline("sd"))), tmp_path, "ink")


# What is refused


@pytest.mark.parametrize("name", ["adapter_model.bin", "fera.pt", "fera.pth", "model.ckpt", "x.pkl"])
def test_a_pickle_is_refused_unopened(tmp_path, name):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was opened",))

    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(FeraError, match=f"{name} is a pickle, which can run any code"):
            open_adapter(source)


def test_a_pickle_under_a_false_name_is_refused(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "new.safetensors")
    assert zipfile.is_zipfile(tmp_path / "new.safetensors")
    (tmp_path / "old.safetensors").write_bytes(pickle.dumps({"a": 1}))
    for name in ("new", "old"):
        with pytest.raises(FeraError, match="is a pickle"):
            open_adapter(tmp_path / f"{name}.safetensors")


def test_nothing_there(tmp_path):
    with pytest.raises(FeraError, match="no adapter at .*gone: there is no such file or folder"):
        open_adapter(tmp_path / "gone")
    with pytest.raises(FeraError, match="holds no adapter: there is no adapter_model.safetensors in it"):
        open_adapter(tmp_path)


def test_a_hub_id_offline():
    with pytest.raises(FeraError, match="no adapter at 'someone/ink'"):
        open_adapter("someone/ink")


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"not a tensor file at all", b"\xff" * 64])
def test_rubbish_is_refused(tmp_path, content):
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(FeraError, match="is not a readable safetensors file .*copy or download it again"):
        open_adapter(tmp_path)


def test_a_newer_format_asks_for_a_newer_fera(copied):
    edit_config(copied, format_version=FORMAT_VERSION + 1)
    with pytest.raises(FeraError, match=f"has format version {FORMAT_VERSION + 1}.*upgrade fera to load it"):
        open_adapter(copied)


def test_a_plain_lora_is_told_where_to_go(copied, tmp_path):
    edit_config(copied, peft_type="LORA")
    with pytest.raises(FeraError, match="is a LORA adapter, not FeRA; load it with pipe.load_lora_weights or peft"):
        open_adapter(copied)
    save_file({"unet.a.lora_A.weight": torch.ones(2, 2)}, tmp_path / "plain.safetensors")
    with pytest.raises(FeraError, match="is no FeRA adapter.*A plain LoRA loads with pipe.load_lora_weights"):
        open_adapter(tmp_path / "plain.safetensors")


@pytest.mark.parametrize("text", ["{", "[]", "null", '"text"', ""])
def test_a_config_that_is_no_object(copied, text):
    (copied / CONFIG).write_text(text)
    with pytest.raises(FeraError):
        open_adapter(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 0}, "num_experts must be an integer of at least 1, got 0"),
        ({"temperature": "hot"}, "temperature must be above 0"),
        ({"r": 2.5}, "r must be an integer"),
    ],
)
def test_a_config_out_of_range(copied, changes, message):
    edit_config(copied, **changes)
    with pytest.raises(FeraError, match=message):
        open_adapter(copied)


@pytest.mark.parametrize("changes", [{"r": 100_000_000}, {"num_experts": 50_000}, {"rank_pattern": {"to_q": 10**9}}])
def test_a_config_cannot_ask_for_more_memory_than_the_file_has(copied, changes):
    edit_config(copied, **changes)
    with pytest.raises(FeraError, match="does not fit its config"):
        open_adapter(copied)


def test_another_rank_in_the_config_is_noticed_on_loading(copied):
    edit_config(copied, r=1)
    pipe = make_pipeline("sd")
    with pytest.raises(FeraError, match="has shape .*, this base and config need"):
        fera.load_adapter(pipe, copied)


def test_a_router_of_another_size_is_noticed_on_loading(copied):
    edit_config(copied, router_features=32)
    with pytest.raises(FeraError, match="router.*has shape"):
        fera.load_adapter(make_pipeline("sd"), copied)


def test_another_alpha_changes_the_strength_and_nothing_else(copied):
    edit_config(copied, lora_alpha=8)
    assert open_adapter(copied).config.lora_alpha == 8


def test_damaged_metadata(copied):
    (copied / CONFIG).unlink()
    rewrite(copied, metadata={"format": "pt", "fera": "{"})
    with pytest.raises(FeraError, match="cannot be read"):
        open_adapter(copied)


def test_an_empty_file_has_no_adapter(copied):
    rewrite(copied, tensors={})
    with pytest.raises(FeraError, match="does not fit its config"):
        open_adapter(copied)


def test_a_config_of_your_own_survives(tmp_path):
    settings = {
        "num_experts": 4,
        "num_bands": 5,
        "router_features": 8,
        "use_rslora": True,
        "rank_pattern": {"to_q": 3},
        "alpha_pattern": {"to_v": 9},
        "exclude_modules": ["up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"],
    }
    written = write_adapter("sd", tmp_path / "out", **settings)
    config = open_adapter(written).config
    assert isinstance(config, FeraConfig)
    for name, value in settings.items():
        held = getattr(config, name)
        assert (sorted(held) if isinstance(held, set) else held) == value
    pipe = make_pipeline("sd")
    fera.load_adapter(pipe, written)
