"""The emoji base and its styles: files, splits, licences, and the base in stock diffusers."""

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import inject_adapter_in_model
from PIL import Image

from fera import FeraConfig, FrequencyBands, demo, trace
from fera.errors import FeraError

SPLITS = ("train", "validation", "test")
ASSETS = Path(demo.__file__).parent


@pytest.fixture(scope="module")
def styles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("styles")
    return {name: demo.unpack_style(name, folder / name) for name in demo.STYLES}


@pytest.fixture(scope="module")
def captions(styles):
    """Captions of every style and split, as {style: {split: {caption: file name}}}."""
    found = {}
    for name, folder in styles.items():
        found[name] = {}
        for split in SPLITS:
            lines = (folder / split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
            found[name][split] = {row["text"]: row["file_name"] for row in rows}
            assert len(found[name][split]) == len(rows)
    return found


@pytest.fixture(scope="module")
def pipeline():
    loaded = StableDiffusionPipeline.from_pretrained(demo.base_path())
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_there_are_six_styles():
    assert len(demo.STYLES) == 6
    assert {"twemoji", "openmoji", "fluent-emoji-flat", "fluent-emoji-high-contrast"} < set(demo.STYLES)


def test_every_style_has_pictures_in_every_split(captions):
    for style, splits in captions.items():
        assert len(splits["train"]) >= 300, style
        assert len(splits["validation"]) >= 50, style
        assert len(splits["test"]) >= 50, style


def test_every_picture_is_listed_and_readable(styles, captions):
    for name, folder in styles.items():
        for split in SPLITS:
            files = {path.name for path in (folder / split).iterdir()} - {"metadata.jsonl"}
            assert files == set(captions[name][split].values())
        with Image.open(folder / "test" / next(iter(captions[name]["test"].values()))) as picture:
            assert (picture.size, picture.mode) == ((64, 64), "RGB")
            assert picture.getpixel((0, 0)) == (255, 255, 255)


def test_captions_are_the_file_names_in_words(captions):
    for splits in captions.values():
        for pairs in splits.values():
            for caption, file in pairs.items():
                assert caption == Path(file).stem.replace("-", " ")


def test_a_concept_is_in_one_split_and_the_same_in_every_style(captions):
    by_split = {split: set().union(*(splits[split] for splits in captions.values())) for split in SPLITS}
    assert not by_split["train"] & by_split["test"]
    assert not by_split["train"] & by_split["validation"]
    assert not by_split["validation"] & by_split["test"]


def test_styles_share_most_test_concepts(captions):
    shared = set.intersection(*(set(splits["test"]) for splits in captions.values()))
    assert len(shared) >= 50


def test_unpacking_again_changes_nothing_and_completes_what_is_missing(tmp_path):
    name = demo.STYLES[0]
    folder = demo.unpack_style(name, tmp_path / "style")
    kept = folder / "train" / "metadata.jsonl"
    stamp = kept.stat().st_mtime_ns
    for path in (folder / "test").iterdir():
        path.unlink()
    (folder / "test").rmdir()
    assert demo.unpack_style(name, str(folder)) == folder
    assert kept.stat().st_mtime_ns == stamp
    assert {path.name for path in folder.iterdir()} == set(SPLITS)


def test_an_unknown_style_names_the_known_ones(tmp_path):
    with pytest.raises(FeraError, match="'watercolour'.*twemoji"):
        demo.unpack_style("watercolour", tmp_path)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FeraError, match="it is a file"):
        demo.unpack_style(demo.STYLES[0], tmp_path / "file")


def test_licences_name_every_style_and_the_base():
    text = (ASSETS / "LICENSES.md").read_text(encoding="utf-8")
    for name in demo.STYLES:
        assert f"styles/{name}.zip" in text
    assert "`noto`" in text and "Apache-2.0" in text and "CC-BY-SA-4.0" in text
    assert "apache-2.0" in (demo.base_path() / "README.md").read_text(encoding="utf-8")


def test_the_assets_are_small():
    size = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    assert size <= 40e6


def test_the_base_is_half_precision_on_disk_and_single_precision_in_memory(pipeline):
    from safetensors import safe_open

    for part in ("vae", "unet", "text_encoder"):
        (file,) = (demo.base_path() / part).glob("*.safetensors")
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_tensor(key).dtype for key in tensors.keys()} == {torch.float16}  # noqa: SIM118
        assert {weight.dtype for weight in getattr(pipeline, part).parameters()} == {torch.float32}


def test_the_base_knows_every_word_of_every_caption(pipeline, captions):
    words = {
        word
        for splits in captions.values()
        for pairs in splits.values()
        for caption in pairs
        for word in caption.split()
    }
    pieces = {word: len(pipeline.tokenizer(word, add_special_tokens=False).input_ids) for word in words}
    # CLIP's tokenizer reads a digit as a word of its own, so that "1st" is two.
    assert {word for word, count in pieces.items() if count > 1} <= {"1st", "2nd", "3rd"}


def test_captions_fit_the_text_encoder(pipeline, captions):
    longest = max((c for splits in captions.values() for pairs in splits.values() for c in pairs), key=len)
    assert len(pipeline.tokenizer(longest).input_ids) <= pipeline.tokenizer.model_max_length
    assert pipeline.tokenizer.model_max_length <= pipeline.text_encoder.config.max_position_embeddings


def test_the_base_generates_in_stock_diffusers(pipeline):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # diffusers' own, about numpy
        images = pipeline(
            ["red heart", "a rocket in an unheard-of style"],
            num_inference_steps=2,
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images
    assert images.shape == (2, 64, 64, 3)
    assert np.isfinite(images).all()


def test_the_scheduler_passes_the_timesteps_that_the_base_was_trained_with(pipeline):
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(10)
    assert scheduler.config.prediction_type == "flow_prediction"
    expected = 1000 * scheduler.sigmas[:-1]
    assert torch.allclose(scheduler.timesteps.float(), expected, atol=1.0)


def test_sampling_the_posterior_gives_its_mean(pipeline):
    posterior = pipeline.vae.encode(torch.rand(1, 3, 64, 64) * 2 - 1).latent_dist
    assert torch.allclose(posterior.sample(), posterior.mean, atol=1e-3)


def test_latents_have_mean_zero_and_deviation_one(pipeline, styles, captions):
    files = [styles["noto-v1"] / "train" / name for name in list(captions["noto-v1"]["train"].values())[:64]]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
        restored = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    assert latents.shape == (64, 4, 16, 16)
    assert latents.mean((0, 2, 3)).abs().max() < 0.5
    deviations = latents.std((0, 2, 3))
    used = deviations[deviations > 0]  # a channel that the decoder ignores is encoded as zero
    assert len(used) >= 3 and 0.5 < used.min() and used.max() < 2
    assert (restored - pixels).square().mean() < 0.03


@pytest.mark.slow
def test_a_red_heart_is_red(pipeline):
    image = pipeline(
        "red heart",
        num_inference_steps=24,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]
    red, green, blue = image[24:36, 24:40].reshape(-1, 3).mean(0)
    assert red > 0.6 and red > 2 * green and red > 2 * blue


def test_the_router_reads_all_channels_of_its_latent(pipeline):
    unet = inject_adapter_in_model(FeraConfig(r=1), copy.deepcopy(pipeline.unet))
    latent = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    latent[:, 2:] = latent[:, 2:].cumsum(-1)  # whose energy is spread otherwise than that of the first two
    with torch.no_grad(), trace(unet) as steps:
        unet(latent, 500, torch.zeros(2, 5, 128))
    torch.testing.assert_close(steps[0].indicator, FrequencyBands().indicator(latent))
