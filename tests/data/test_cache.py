from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trained_cases import flux2, z_image

from fera import FeraError
from fera.config import DataConfig
from fera.data.cache.encoded import EncodedSet
from fera.data.cache.encoder import Encoder
from fera.data.checking import check_images, find_examples
from fera.data.images import load_image
from fera.data.tensors import to_tensor
from fera.models.families import family_of
from fera.models.latents import AS_THEY_ARE, LatentUnits
from fera.pipelines.base import load_base
from fera.training.start.encoders import free_encoders


def encode(pipe, folder: Path, cache: Path, **changes: object) -> tuple[EncodedSet, dict[str, int]]:
    counts: dict[str, int] = {}
    settings = {
        "family": family_of(pipe),
        "buckets": [(16, 16)],
        "center_crop": True,
        "random_flip": False,
        "seed": 0,
        **changes,
    }
    encoder = Encoder(
        pipe=pipe,
        folder=cache,
        device=torch.device("cpu"),
        progress=lambda what, done, total: counts.update({what: total}),
        **settings,
    )
    config = DataConfig(train_data_dir=folder)
    examples, _ = check_images(find_examples(folder, config), skip_bad=False)
    return encoder.encode(examples), counts


@pytest.fixture
def pipe(tiny_sd_dir):
    return load_base(str(tiny_sd_dir))


def test_holds_what_the_pipeline_computes(pipe, image_folder, tmp_path):
    encoded, counts = encode(pipe, image_folder, tmp_path / "cache")
    assert counts == {"captions": 5, "pictures": 4}  # the empty caption is one more
    batch = encoded.batch([2, 0], without_caption=[False, True])
    assert batch.names == ["2.png", "0.png"]
    with torch.no_grad():
        pixels = to_tensor(load_image(image_folder / "2.png"), (16, 16))[None]
        posterior = pipe.vae.encode(pixels).latent_dist
        texts = [pipe.encode_prompt(text, "cpu", 1, False)[0][0] for text in ("a blue house", "")]
    torch.testing.assert_close(batch.latents[:1], posterior.mean * 0.8, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.conditions["encoder_hidden_states"], torch.stack(texts), rtol=1e-4, atol=1e-5)


def test_second_time_computes_nothing(pipe, image_folder, tmp_path):
    first, _ = encode(pipe, image_folder, tmp_path / "cache")
    second, counts = encode(pipe, image_folder, tmp_path / "cache")
    assert counts == {} and first == second


def test_folder_of_the_base_does_not_matter(pipe, tiny_sd_dir, image_folder, tmp_path):
    import shutil

    encode(pipe, image_folder, tmp_path / "cache")
    moved = load_base(str(shutil.copytree(tiny_sd_dir, tmp_path / "moved")))
    assert encode(moved, image_folder, tmp_path / "cache")[1] == {}


def test_whatever_changes_the_content_is_computed_anew(pipe, image_folder, tmp_path):
    cache = tmp_path / "cache"
    encode(pipe, image_folder, cache)
    (image_folder / "0.txt").write_text("another caption")
    assert encode(pipe, image_folder, cache)[1] == {"captions": 1}
    (image_folder / "1.png").write_bytes((image_folder / "1.png").read_bytes() + b"\0")
    assert encode(pipe, image_folder, cache)[1] == {"pictures": 1}
    assert encode(pipe, image_folder, cache, buckets=[(32, 32)])[1] == {"pictures": 4}
    assert encode(pipe, image_folder, cache, center_crop=False)[1] == {"pictures": 4}
    assert encode(pipe, image_folder, cache, center_crop=False, seed=1)[1] == {"pictures": 4}
    with torch.no_grad():
        next(pipe.text_encoder.parameters()).add_(0.1)
    assert encode(pipe, image_folder, cache)[1] == {"captions": 5}
    with torch.no_grad():
        next(pipe.vae.parameters()).add_(0.1)
    assert encode(pipe, image_folder, cache)[1] == {"pictures": 4}
    pipe.register_to_config(requires_safety_checker=True)  # any setting of the pipeline, for some shape its prompts
    assert encode(pipe, image_folder, cache)[1] == {"captions": 5}


def test_flips_are_a_second_latent(pipe, image_folder, tmp_path):
    from PIL import Image

    split = Image.new("RGB", (16, 16), "black")
    split.paste("white", (0, 0, 8, 16))
    split.save(image_folder / "0.png")
    encoded, counts = encode(pipe, image_folder, tmp_path / "cache", random_flip=True)
    assert counts["pictures"] == 8
    plain, mirrored = encoded.batch([0, 0], flipped=[False, True]).latents
    assert not torch.allclose(plain, mirrored, atol=1e-3)


def test_sd3(tiny_sd3_dir, image_folder, tmp_path):
    pipe = load_base(str(tiny_sd3_dir))
    encoded, _ = encode(pipe, image_folder, tmp_path / "cache")
    batch = encoded.batch([0, 1])
    assert batch.latents.shape == (2, 4, 8, 8)
    assert encoded.units == LatentUnits(shift=(0.1,), scale=(0.8,))
    assert set(batch.conditions) == {"encoder_hidden_states", "pooled_projections"}
    with torch.no_grad():
        embeds, _, pooled, _ = pipe.encode_prompt("a red rocket", None, None, device="cpu")
        posterior = pipe.vae.encode(to_tensor(load_image(image_folder / "0.png"), (16, 16))[None]).latent_dist
    torch.testing.assert_close(batch.conditions["encoder_hidden_states"][:1], embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.conditions["pooled_projections"][:1], pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.latents[:1], (posterior.mean - 0.1) * 0.8, rtol=1e-4, atol=1e-5)


def test_a_family_of_latents_of_its_own(image_folder, tmp_path):
    """FLUX.2 standardizes blocks of pixels; another family keeps the same autoencoder's latents as they are."""
    pipe = flux2.CASES[0].pipeline()
    family = family_of(pipe)
    encoded, _ = encode(pipe, image_folder, tmp_path / "cache")
    pixels = to_tensor(load_image(image_folder / "0.png"), (16, 16))[None]
    with torch.no_grad():
        mean = pipe.vae.encode(pixels).latent_dist.mean
        expected = family.clean_latents(pipe.vae, pixels)
    torch.testing.assert_close(encoded.batch([0]).latents, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, mean, atol=1e-2)
    plain = replace(family, latents=None, units=lambda vae: AS_THEY_ARE)
    others, counts = encode(pipe, image_folder, tmp_path / "cache", family=plain)
    assert counts == {"pictures": 4}
    torch.testing.assert_close(others.batch([0]).latents, mean, rtol=1e-4, atol=1e-5)


def test_captions_of_unequal_length(image_folder, tmp_path):
    """Z-Image's are as long as they are: a batch pads the shorter one, and its mask says so."""
    pipe = z_image.CASES[0].pipeline()
    pipe.set_progress_bar_config(disable=True)
    (image_folder / "1.txt").write_text("the sun and moon and a green tree")
    encoded, _ = encode(pipe, image_folder, tmp_path / "cache")
    batch = encoded.batch([0, 1])
    with torch.no_grad():
        alone = [family_of(pipe).encode(pipe, [caption], torch.device("cpu")) for caption in batch.captions]
    for row, conditions in enumerate(alone):
        for name, value in conditions.items():
            length = value.shape[1]
            torch.testing.assert_close(batch.conditions[name][row, :length], value[0], rtol=1e-4, atol=1e-5)
            assert not batch.conditions[name][row, length:].any()
    lengths = batch.conditions["mask"].sum(dim=1).tolist()
    assert lengths[0] < lengths[1] == batch.conditions["mask"].shape[1]


def test_damaged_cache_is_a_clear_error(pipe, image_folder, tmp_path):
    encoded, _ = encode(pipe, image_folder, tmp_path / "cache")
    (shard,) = (tmp_path / "cache").glob("latents-*")
    shard.unlink()
    with pytest.raises(FeraError, match=r"latents-.*delete it"):
        encoded.batch([0])


def test_encoders_are_freed(pipe):
    import gc
    import weakref

    vae, text_encoder = weakref.ref(pipe.vae), weakref.ref(pipe.text_encoder)
    free_encoders(pipe, family_of(pipe))
    gc.collect()
    assert vae() is None and text_encoder() is None


def test_unknown_family_is_refused():
    with pytest.raises(FeraError, match="StableDiffusion3Pipeline, .*StableDiffusionPipeline"):
        family_of(object())


def test_no_text_is_encoded_twice(tiny_sd_dir, image_folder, tmp_path, monkeypatch):
    """Whoever has it: training pictures, held-out ones, the orders of tags, another run with the same cache."""
    pipe = load_base(str(tiny_sd_dir))
    family, asked = family_of(pipe), []

    def encode(pipe, captions, device):
        asked.extend(captions)
        return family.encode(pipe, captions, device)

    examples, _ = check_images(find_examples(image_folder, DataConfig(train_data_dir=image_folder)), skip_bad=False)
    same = [replace(example, caption="a red rocket") for example in examples]
    for _ in range(2):
        settings = (torch.device("cpu"), [(16, 16)], True, False, 0, lambda *_: None)
        encoder = Encoder(pipe, replace(family, encode=encode), tmp_path / "cache", *settings)
        sets = [(same, lambda caption: [caption, "rocket, red"]), (same[:2], lambda caption: [caption])]
        encoder.encode_sets(sets)
    assert sorted(asked) == ["", "a red rocket", "rocket, red"]
