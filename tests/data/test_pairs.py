"""Source pictures: found in each layout, checked, cropped and cached with their pictures, told to the denoiser."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_cases import entries
from models import flux, flux2, stable_diffusion
from models.inputs import picture
from PIL import Image
from trained_cases import qwen_image
from training_cases import run_config

import fera
from fera import FeraError
from fera.cli.main import main
from fera.config import DataConfig
from fera.config.reading import shareable_settings
from fera.data.cache.encoder import Encoder
from fera.data.checking import check_images
from fera.data.example import Example, Source
from fera.data.pair_checks import with_sources
from fera.data.pairs import add_sources, describe_sources
from fera.data.sources import find_examples
from fera.models.families import family_of
from fera.pipelines.memory import ways_to_hold
from fera.preflight.costs import estimate
from fera.training import train
from fera.training.step.order import order_of

CPU = torch.device("cpu")


@pytest.fixture
def pictures(tmp_path):
    """Two pictures with captions; to each a source of its name, and a hint of another size."""
    for folder in ("after", "before", "hints"):
        (tmp_path / folder).mkdir()
    for number in range(2):
        picture(number).save(tmp_path / "after" / f"{number}.png")
        (tmp_path / "after" / f"{number}.txt").write_text(f"make it {number}")
        picture(10 + number).save(tmp_path / "before" / f"{number}.webp", lossless=True)
        picture(20 + number, 40, 40).save(tmp_path / "hints" / f"{number}.png")
    return tmp_path


def found(folder, **settings):
    config = DataConfig(train_data_dir=folder, **settings)
    return add_sources(find_examples(folder, config), config)


def named(examples, folder):
    return {
        example.name: [source.path.relative_to(folder).as_posix() for source in example.sources] for example in examples
    }


def test_folders_of_sources(pictures):
    examples = found(pictures / "after", source_path=[str(pictures / "before"), str(pictures / "hints")])
    assert named(examples, pictures) == {
        "0.png": ["before/0.webp", "hints/0.png"],
        "1.png": ["before/1.webp", "hints/1.png"],
    }
    checked, _ = check_images(examples, skip_bad=False)
    assert [source.size for source in checked[0].sources] == [(24, 16), (40, 40)]
    assert len({source.digest for example in checked for source in example.sources}) == 4
    assert describe_sources(checked) == ["each picture has 2 source pictures"]
    assert named(found(pictures / "after"), pictures) == {"0.png": [], "1.png": []}


def test_a_column_of_metadata(pictures):
    """The sources are no training pictures; a row may have none."""
    rows = [
        {"file_name": "after/0.png", "text": "one", "source": "before/0.webp"},
        {"file_name": "after/1.png", "text": "two", "source": ["before/1.webp", "hints/1.png"]},
        {"file_name": "hints/0.png", "text": "three"},
        {"file_name": "before/1.webp", "text": "both a picture and a source", "source": "after/1.png"},
    ]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert named(found(pictures), pictures) == {
        "after/0.png": ["before/0.webp"],
        "after/1.png": ["before/1.webp", "hints/1.png"],
        "hints/0.png": [],
        "before/1.webp": ["after/1.png"],
    }


@pytest.mark.parametrize(
    ("source", "message"),
    [("../secret.png", "leads out of the data folder"), (3, "'source' must be a path or a list of paths, got 3")],
)
def test_odd_columns_are_refused(pictures, source, message):
    row = {"file_name": "after/0.png", "text": "one", "source": source}
    (pictures / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(FeraError, match=message):
        found(pictures)


def test_a_column_of_a_dataset(pictures, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")

    def content(seed):
        buffer = io.BytesIO()
        picture(seed).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    columns = {
        "edited_image": [content(1), content(2)],
        "edit_prompt": ["make it red", "add a hat"],
        "input_image": [content(3), content(4)],
        "several": [[content(5), content(6)], []],
    }
    features = {name: datasets.Image() for name in ("edited_image", "input_image")}
    features |= {"edit_prompt": datasets.Value("string"), "several": datasets.List(datasets.Image())}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    (tmp_path / "set").mkdir()
    table.to_parquet(tmp_path / "set" / "train.parquet")
    settings = {"image_column": "edited_image", "caption_column": "edit_prompt"}
    for column, counts in (("input_image", [1, 1]), ("several", [2, 0]), ("nothing", [0, 0])):
        examples, _ = check_images(found(tmp_path / "set", source_column=column, **settings), skip_bad=False)
        assert [len(example.sources) for example in examples] == counts
    single = check_images(found(tmp_path / "set", source_column="input_image", **settings), skip_bad=False)[0]
    assert np.array_equal(np.asarray(Image.open(single[1].sources[0].path)), np.asarray(picture(4)))


def test_a_damaged_source_is_named(pictures):
    (pictures / "before" / "1.webp").write_bytes(b"RIFF")
    examples = found(pictures / "after", source_path=str(pictures / "before"))
    with pytest.raises(FeraError, match=r"1\.png has a source, .*1\.webp, that is"):
        check_images(examples, skip_bad=False)
    usable, bad = check_images(examples, skip_bad=True)
    assert [example.name for example in usable] == ["0.png"] and len(bad) == 1
    (pictures / "before" / "1.webp").unlink()
    with pytest.raises(FeraError, match=r"1 of 2 pictures have no source of their name in .*before: 1\.png"):
        found(pictures / "after", source_path=str(pictures / "before"))


def checked(folder, **settings):
    return check_images(found(folder, **settings), skip_bad=False)[0]


def encode(pipe, examples, folder, size=(24, 16), **settings):
    family = family_of(pipe)
    examples = with_sources(examples, family, type(pipe).__name__)
    arguments = {"center_crop": True, "random_flip": False, "seed": 0, "progress": lambda *_: None} | settings
    return Encoder(pipe=pipe, family=family, folder=folder, device=CPU, buckets=[size], **arguments).encode(examples)


def test_a_source_is_cropped_and_mirrored_as_its_picture(tmp_path):
    """The same file as picture and as source: the same latent, of the same crop, which is cached once."""
    wide = tmp_path / "wide.png"
    picture(3, 16, 48).save(wide)
    examples, _ = check_images([Example(wide, "as it was", sources=(Source(wide),))], skip_bad=False)
    pipe = flux.make_kontext_pipeline()
    settings = {"center_crop": False, "random_flip": True}
    encoded = encode(pipe, examples, tmp_path / "cache", size=(16, 16), **settings)
    for flipped in (False, True):
        batch = encoded.batch([0], flipped=[flipped])
        assert torch.equal(batch.conditions["source_0"], batch.latents)
    assert not torch.equal(encoded.batch([0]).latents, encoded.batch([0], flipped=[True]).latents)
    assert len(entries(tmp_path / "cache", "latent")) == 2
    assert len(entries(tmp_path / "cache", "text")) == 2  # the caption and the empty one, whatever the sources


def test_a_hole_is_blank_in_the_source_alone(tmp_path):
    """Outside of the hole nothing depends on what is in it, and nothing of it is told."""
    mask = Image.new("L", (24, 16))
    mask.paste(255, (0, 0, 12, 16))
    mask.save(tmp_path / "mask.png")
    one, other = picture(1), picture(2)
    other.paste(one.crop((12, 0, 24, 16)), (12, 0))
    sources, holes, latents = [], [], []
    pipe = stable_diffusion.make_inpaint_pipeline()
    for number, image in enumerate((one, other)):
        image.save(tmp_path / f"{number}.png")
        examples = [Example(tmp_path / f"{number}.png", "", mask=tmp_path / "mask.png")]
        encoded = encode(pipe, check_images(examples, skip_bad=False)[0], tmp_path / "cache", random_flip=True)
        batch = encoded.batch([0])
        assert batch.mask is None  # the loss counts everywhere
        sources.append(batch.conditions["source_0"])
        holes.append(batch.conditions["hole"])
        latents.append(batch.latents)
    assert torch.equal(*sources) and not torch.allclose(*latents)
    assert holes[0].shape == (1, 1, 16, 24)
    assert holes[0][..., :12].eq(1).all() and holes[0][..., 12:].eq(0).all()
    assert torch.equal(encoded.batch([0], flipped=[True]).conditions["hole"], holes[0].flip(-1))


def test_a_batch_holds_sources_of_one_size(tmp_path):
    """FLUX.2's keep their shapes; latents of unlike sizes cannot be stacked."""
    pipe = flux2.make_klein_pipeline()
    examples = []
    for number, (height, width) in enumerate([(64, 72), (64, 64), (64, 72), (72, 64)]):
        picture(number).save(tmp_path / f"{number}.png")
        picture(9 + number, height, width).save(tmp_path / f"s{number}.png")
        examples.append(Example(tmp_path / f"{number}.png", "", sources=(Source(tmp_path / f"s{number}.png"),)))
    encoded = encode(pipe, check_images(examples, skip_bad=False)[0], tmp_path, with_texts=False)
    assert [group[1] for group in encoded.groups] == [(72, 64), (64, 64), (72, 64), (64, 72)]
    order = order_of(encoded.groups, run_config(tmp_path, tmp_path, tmp_path))
    batches = sorted(sorted(order.rows(place)) for place in range(3))
    assert batches == [[0, 2], [1], [3]]
    assert [len(encoded.batch(rows).conditions["source_0"]) for rows in batches] == [2, 1, 1]


def test_what_a_base_does_not_take_is_refused(pictures, tmp_path):
    after, before, hints = (pictures / name for name in ("after", "before", "hints"))
    edit, inpaint = (
        family_of(make()) for make in (stable_diffusion.make_edit_pipeline, stable_diffusion.make_inpaint_pipeline)
    )
    plain = family_of(stable_diffusion.make_sd_pipeline())
    with pytest.raises(FeraError, match=r"0\.png has no source pictures, and a X takes 1: set data\.source_path"):
        with_sources(checked(after), edit, "X")
    with pytest.raises(FeraError, match=r"0\.png has 2 source pictures, and a X takes 1"):
        with_sources(checked(after, source_path=[str(before), str(hints)]), edit, "X")
    with pytest.raises(FeraError, match=r"has a source, .*0\.png, of another shape \(40 x 40, the picture 24 x 16\)"):
        with_sources(checked(after, source_path=str(hints)), edit, "X")
    with pytest.raises(FeraError, match=r"2 pictures have sources .* but a X takes none"):
        with_sources(checked(after, source_path=str(before)), plain, "X")
    with pytest.raises(FeraError, match=r"told what to paint by masks, and 2 pictures have none: 0\.png, 1\.png"):
        with_sources(checked(after), inpaint, "X")
    with pytest.raises(FeraError, match=r"data\.source_path .*nowhere is no folder"):
        found(after, source_path=str(pictures / "nowhere"))


@pytest.fixture
def edit_dir(tmp_path):
    """A saved InstructPix2Pix."""
    stable_diffusion.make_edit_pipeline().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_run_that_edits_is_checked_trained_and_drawn(pictures, edit_dir, tmp_path, capsys):
    """With pictures of both directions in buckets, and what is drawn beside what it was made of."""
    settings = {"data": {"source_path": [str(pictures / "before")], "enable_bucket": True, "resolution": 24}}
    settings["data"] |= {"bucket_reso_steps": 4, "validation_fraction": 0.5}
    drawn = {"prompts": ["make it red"], "sources": [str(pictures / "before" / "0.webp")], "num_inference_steps": 2}
    config = run_config(edit_dir, pictures / "after", tmp_path / "run", **settings, validation=drawn)
    train(config)
    # The grid: the source above, what was drawn of it below, both wider than high.
    grid = Image.open(tmp_path / "run" / "samples" / "step-000006.png")
    assert grid.height > grid.width
    assert json.loads((tmp_path / "run" / "samples" / "step-000006.json").read_text())["images"][0]["source"]
    assert {"data.source_path", "validation.sources"}.isdisjoint(shareable_settings(config))

    flags = ["--base", str(edit_dir), "--data.resolution", "24", "--data.source_path", str(pictures / "before")]
    capsys.readouterr()
    assert main(["data", "check", str(pictures / "after"), *flags, "--list"]) == 0
    printed = capsys.readouterr().out
    assert "each picture has 1 source picture" in printed and f"from {pictures / 'before' / '0.webp'}" in printed
    assert main(["data", "check", str(pictures / "after"), *flags[:4]]) == 2
    assert "has no source pictures, and a StableDiffusionInstructPix2PixPipeline takes 1" in capsys.readouterr().out

    source = str(pictures / "before" / "1.webp")
    arguments = ["generate", "make it red", "a hat", "--adapter", str(tmp_path / "run"), "--steps", "2"]
    assert (
        main([*arguments, "--output", str(tmp_path / "out"), "--sources", source, "--width", "24", "--height", "16"])
        == 0
    )
    assert Image.open(tmp_path / "out" / "001-a-hat.png").size == (24, 16)
    record = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert [image["source"] for image in record["images"]] == [source, source]
    capsys.readouterr()
    assert main([*arguments, "--output", str(tmp_path / "none")]) == 2
    assert "draws from 1 source pictures a prompt, and got none: set --sources" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({"prompts": ["a"]}, r"validation\.prompts: a .* draws from 1 source pictures a prompt, and got none"),
        ({"prompts": ["a"], "sources": ["nowhere.png"]}, r"source picture nowhere\.png"),
        ({"prompts": ["a"], "sources": ["{0}|{0}"]}, "got 2: set"),
        ({"prompts": ["a"], "sources": ["{0}"], "masks": ["{0}"]}, "takes no `masks`"),
    ],
)
def test_prompts_without_what_they_need_stop_a_run_before_it_trains(pictures, edit_dir, tmp_path, validation, message):
    given = str(pictures / "before" / "0.webp")
    validation = {name: [text.format(given) for text in texts] for name, texts in validation.items()}
    data = {"source_path": str(pictures / "before"), "resolution": 16}
    config = run_config(edit_dir, pictures / "after", tmp_path / "run", data=data, validation=validation)
    with pytest.raises(FeraError, match=message):
        train(config)


def test_sources_for_a_base_that_takes_none_are_refused(tiny_sd_dir, tmp_path):
    pipe = fera.pipelines.base.load_base(str(tiny_sd_dir))
    with pytest.raises(FeraError, match="a StableDiffusionPipeline takes no `sources` and `masks`"):
        fera.generation.generate(pipe, ["a"], sources=[[picture(0)]])


def test_as_many_sources_as_prompts():
    with pytest.raises(ValueError, match=r"validation\.sources has 1 entries for 2 prompts"):
        run_config("base", "data", Path("out"), validation={"prompts": ["a", "b"], "sources": ["x"]})


def test_costs_of_a_base_whose_text_encoder_sees_sources(tmp_path, monkeypatch):
    qwen_image.smaller(monkeypatch)
    picture(1, 64, 96).save(tmp_path / "a.png")
    examples = [Example(tmp_path / "a.png", "make it red", sources=(Source(tmp_path / "a.png"),))]
    examples, _ = check_images(examples, skip_bad=False)
    config = run_config(tmp_path, tmp_path, tmp_path / "run")
    pipe = qwen_image.make_edit()
    ways = ways_to_hold(pipe.transformer, torch.float32)
    estimates = estimate(pipe, config, examples, [(96, 64)], CPU, ways)
    assert estimates.memory_bytes > estimates.parts["transformer"] == ways[0].device_bytes
    assert [way for way, _ in estimates.choices] == ways[1:]
    assert estimates.latents == 1 and estimates.captions == 2 and estimates.step_seconds > 0
