"""Datasets as the `datasets` package writes them, by name or as a folder of parquet files."""

import io
import json
import re
import shutil
import sys

import pytest
import torch
from listeners import train
from PIL import Image
from safetensors.torch import load_file
from tiny import COLORS
from training_cases import run_config

from fera import FeraError
from fera.cli.main import main
from fera.config import DataConfig
from fera.config.reading import shareable_settings
from fera.data.checking import check_images, hold_out
from fera.data.images import load_image
from fera.data.masks import add_masks
from fera.data.sources import check_captions, find_examples, scan, scan_training
from fera.report.examples import read_pictures
from fera.training import load_config

datasets = pytest.importorskip("datasets")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """`datasets` keeps its files in the test's folder."""
    folder = tmp_path / "hf"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return folder


def encoded(color="red", format="PNG", mode="RGB", size=(20, 16), **options):
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, format, **options)
    return buffer.getvalue()


def row(content, path="a.png"):
    return {"bytes": content, "path": path}


def save(folder, images, captions=None, split=None, column="image", caption_column="text", feature=None):
    """A parquet file of a folder, with the features of `datasets`."""
    features = {column: feature or datasets.Image()}
    columns = {column: images}
    if captions is not None:
        kind = datasets.List(datasets.Value("string")) if isinstance(captions[0], list) else datasets.Value("string")
        columns[caption_column], features[caption_column] = captions, kind
    folder.mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    # Not to_parquet: it would read what a row has a path of.
    parquet.write_table(table.data.table, folder / (f"{split}-00000-of-00001.parquet" if split else "data.parquet"))
    return folder


@pytest.fixture
def colors(tmp_path):
    folder = tmp_path / "colors"
    folder.mkdir()
    columns = {"image": [Image.open(io.BytesIO(encoded(color))) for color in COLORS.values()], "text": list(COLORS)}
    datasets.Dataset.from_dict(columns).to_parquet(folder / "data.parquet")
    return folder


def data(folder, **settings):
    return DataConfig(train_data_dir=folder, **settings)


def find(folder, **settings):
    return find_examples(folder, data(folder, **settings))


def test_a_folder_of_parquet_files_gives_the_bytes_that_went_in(colors, cache):
    found = scan(colors, data(colors, trigger_word="w"))
    assert found.layout == "parquet"
    assert [example.name for example in found.examples] == ["000000", "000001", "000002", "000003"]
    assert [example.caption for example in found.examples] == [f"w, {caption}" for caption in COLORS]
    assert [example.image.read_bytes() for example in found.examples] == [encoded(c) for c in COLORS.values()]
    assert all(example.image.is_relative_to(cache / "fera") for example in found.examples)
    # Found again, nothing is written again.
    times = [example.image.stat().st_mtime_ns for example in found.examples]
    assert [example.image.stat().st_mtime_ns for example in find(colors)] == times


def test_a_dataset_by_its_name_equals_the_folder(colors):
    named = scan_training(DataConfig(dataset_name=str(colors)))
    assert named.layout == "dataset" and named.examples == find(colors)


def test_an_imagefolder_by_its_name(image_folder, tmp_path):
    rows = [{"file_name": f"{number}.png", "text": caption} for number, caption in enumerate(COLORS)]
    (image_folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for path in image_folder.glob("*.txt"):
        path.unlink()
    examples = scan_training(DataConfig(dataset_name=str(image_folder))).examples
    assert [(example.image.name, example.caption) for example in examples] == [
        (f"{number}.png", caption) for number, caption in enumerate(COLORS)
    ]
    # Metadata of a stranger may name a picture that is not theirs.
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (image_folder / "metadata.jsonl").write_text('{"file_name": "../secret.png", "text": "x"}')
    with pytest.raises(FeraError):
        scan_training(DataConfig(dataset_name=str(image_folder)))


def test_a_path_in_a_row_is_never_opened(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    for path in (str(tmp_path / "secret.png"), "secret.png", "https://example.org/a.png", "\0"):
        folder = save(tmp_path / "set", [row(None, path)], ["x"])
        for config in (data(folder), DataConfig(dataset_name=str(folder))):
            with pytest.raises(FeraError, match="row 0 of .* names a file, .* instead of holding its picture"):
                scan_training(config)
    # Nor does it name the file where bytes are kept.
    (example,) = find(save(tmp_path / "set", [row(encoded(), "../../x.png")], ["x"]))
    assert len(example.image.name) == 64 and not list(tmp_path.rglob("x.png"))


@pytest.fixture
def made_of_files(tmp_path):
    """A dataset that `datasets` made of a folder of pictures: its rows name files."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, color in enumerate(COLORS.values()):
        (folder / f"{number}.png").write_bytes(encoded(color))
    rows = [{"file_name": f"{number}.png", "text": caption} for number, caption in enumerate(COLORS)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")


def test_parquet_of_a_dataset_that_was_made_of_files(made_of_files, tmp_path):
    (tmp_path / "set").mkdir()
    made_of_files.to_parquet(tmp_path / "set" / "data.parquet")
    with pytest.raises(FeraError, match="instead of holding its picture.*save_to_disk.*embed_table_storage") as caught:
        find(tmp_path / "set")
    # What the message says is what works.
    call = re.search(r"dataset = (dataset\..*?\)) before", str(caught.value))[1]
    embedded = eval(call, {"datasets": datasets, "dataset": made_of_files})
    embedded.to_parquet(tmp_path / "set" / "data.parquet")
    found = find(tmp_path / "set")
    assert [e.caption for e in found] == list(COLORS)
    assert [e.image.read_bytes() for e in found] == [encoded(color) for color in COLORS.values()]


def test_a_dataset_that_was_saved_to_disk(made_of_files, tmp_path):
    made_of_files.select([2, 0, 3]).save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": made_of_files, "test": made_of_files.select([1])}).save_to_disk(tmp_path / "two")
    shutil.rmtree(tmp_path / "pictures")
    contents = {caption: encoded(color) for caption, color in COLORS.items()}
    captions = list(COLORS)
    for make in (data, lambda folder, **settings: DataConfig(dataset_name=str(folder), **settings)):
        for folder, split, expected in (
            ("one", "train", [captions[2], captions[0], captions[3]]),
            ("one", "train[1:]", [captions[0], captions[3]]),
            ("two", "train", captions),
            ("two", "test", captions[1:2]),
        ):
            found = scan_training(make(tmp_path / folder, dataset_split=split))
            assert [e.caption for e in found.examples] == expected
            assert [e.image.read_bytes() for e in found.examples] == [contents[caption] for caption in expected]
            assert found.layout == ("saved" if make is data else "dataset")
        with pytest.raises(FeraError, match="cannot be loaded: .*validation.*train"):
            scan_training(make(tmp_path / "two", dataset_split="validation"))


@pytest.mark.parametrize(
    ("name", "held", "message"),
    [
        ("state.json", {"_data_files": [{"filename": "../secret.arrow"}]}, "leads out of the data folder"),
        ("state.json", {"_data_files": [{"filename": "/etc/secret.arrow"}]}, "leads out of the data folder"),
        ("state.json", {"_data_files": []}, "names no files"),
        ("state.json", {"_data_files": [3]}, "names no files"),
        ("state.json", [1], "must hold a JSON object"),
        ("state.json", {"_data_files": [{"filename": "absent.arrow"}]}, "cannot be loaded"),
        ("dataset_dict.json", {"splits": ["../one"]}, "names no splits"),
        ("dataset_dict.json", {"splits": "train"}, "names no splits"),
    ],
)
def test_saved_datasets_of_strangers(made_of_files, tmp_path, name, held, message):
    made_of_files.save_to_disk(tmp_path / "one")
    (tmp_path / "one" / name).write_text(json.dumps(held))
    with pytest.raises(FeraError, match=message):
        find(tmp_path / "one")


def test_pictures_go_through_the_checks_of_files(tmp_path):
    bomb = encoded("white", mode="1", size=(10_000, 9_000))
    contents = [encoded(), b"", b"no picture", encoded()[:60], bomb]
    examples = find(save(tmp_path / "set", [row(content) for content in contents], ["x"] * 5))
    good, bad = check_images(examples, skip_bad=True)
    assert [example.name for example in good] == ["000000"] and good[0].size == (20, 16)
    reasons = ("is empty", "is no picture", "is damaged", "is too large")
    for number, (line, reason) in enumerate(zip(bad, reasons, strict=True), start=1):
        assert line.startswith(f"row {number} of {tmp_path / 'set'} {reason}")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    contents = [encoded(format="JPEG", exif=exif), encoded((0, 0, 0, 0), mode="RGBA")]
    turned, clear = check_images(find(save(tmp_path / "set", list(map(row, contents)), ["x"] * 2)), skip_bad=False)[0]
    assert turned.size == (16, 20) and load_image(clear.image).getpixel((0, 0)) == (255, 255, 255)


def test_columns_that_do_not_exist_are_listed_nearest_first(tmp_path):
    table = {"picture": [encoded()], "label": ["x"], "txt": ["a cat"]}
    folder = tmp_path / "set"
    folder.mkdir()
    datasets.Dataset.from_dict(table).to_parquet(folder / "a.parquet")
    with pytest.raises(FeraError, match="no column 'image'; it has: .*Set data.image_column"):
        find(folder)
    with pytest.raises(FeraError, match=r"no column 'text'; it has: txt, .*Set data.caption_column"):
        find(folder, image_column="picture")
    with pytest.raises(FeraError, match="'label' must hold an encoded picture, got str"):
        find(folder, image_column="label", caption_column="txt")
    # Plain bytes are pictures too.
    assert find(folder, image_column="picture", caption_column="txt")[0].caption == "a cat"


def test_captions_that_are_missing_several_or_none(tmp_path):
    images = [row(encoded("red")), row(encoded("blue"))]
    folder = save(tmp_path / "set", images, ["a\x1bcat\non a mat", None])
    with pytest.raises(FeraError, match="1 of 2 pictures in .*set have no caption .*'text'.*: 000001"):
        find(folder)
    assert [e.caption for e in find(folder, instance_prompt="a dog")] == ["a cat on a mat", "a dog"]
    folder = save(tmp_path / "set", images, [["first", "second"], []])
    assert [e.caption for e in find(folder, allow_missing_captions=True)] == ["first", ""]
    folder = save(tmp_path / "set", images)
    with pytest.raises(FeraError, match="no column 'text'; it has: image"):
        find(folder)
    assert [e.caption for e in find(folder, instance_prompt="a dog")] == ["a dog"] * 2
    table = datasets.Dataset.from_dict({"image": images, "text": [1, 2]})
    table.to_parquet(folder / "data.parquet")
    with pytest.raises(FeraError, match="row 0 of .*: 'text' must be text or a list of texts, got 1"):
        find(folder)


def test_splits(tmp_path):
    folder = save(tmp_path / "set", [row(encoded("red"))] * 3, ["r"] * 3, split="train")
    save(folder, [row(encoded("blue"))], ["b"], split="test")
    for make in (data, lambda folder, **settings: DataConfig(dataset_name=str(folder), **settings)):
        captions = {
            split: [example.caption for example in scan_training(make(folder, dataset_split=split)).examples]
            for split in ("train", "test", "train[:2]")
        }
        assert captions == {"train": ["r"] * 3, "test": ["b"], "train[:2]": ["r"] * 2}
        with pytest.raises(FeraError, match=r"cannot be loaded: .*validation.*train"):
            scan_training(make(folder, dataset_split="validation"))
    (folder / "data").mkdir()
    for path in folder.glob("*.parquet"):
        path.rename(folder / "data" / path.name)
    assert len(find(folder)) == 3


def test_equal_pictures_are_not_held_out_from_themselves(tmp_path):
    colors = ["red", "red", "red", "blue"]
    examples = find(save(tmp_path / "set", [row(encoded(color)) for color in colors], list("abcd")))
    for fraction in (0.1, 0.5, 0.9):
        trained, held = hold_out(examples, fraction)
        assert trained and held and not {e.image for e in trained} & {e.image for e in held}
    with pytest.raises(FeraError, match="two pictures"):
        hold_out(examples[:3], 0.5)


def test_masks_by_the_number_of_the_row(colors, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for number in range(4):
        Image.new("L", (20, 16), 255).save(masks / f"{number:06d}.png")
    examples = add_masks(find(colors), data(colors, mask_path=masks))
    assert [example.mask.name for example in examples] == [f"{number:06d}.png" for number in range(4)]
    assert check_images(examples, skip_bad=False)[0][0].mask_digest


def test_links_that_lead_out_of_the_folder(colors, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.parquet").symlink_to(colors / "data.parquet")
    with pytest.raises(FeraError, match="is a link to"):
        find(tmp_path / "set")
    assert len(find(tmp_path / "set", follow_symlinks=True)) == 4


def test_files_that_are_no_parquet(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(FeraError, match="set cannot be loaded: "):
        find(tmp_path / "set")


def test_a_run_on_a_dataset_equals_one_on_its_pictures(tiny_sd_dir, image_folder, colors, tmp_path):
    """Class pictures, held-out ones, flips and a trigger word among it; the cache is the folder's."""
    data = {"train_data_dir": None, "dataset_name": str(colors), "cache_dir": tmp_path / "cache", "random_flip": True}
    data |= {"class_data_dir": tmp_path / "class", "class_prompt": "a blue house", "num_class_images": 2}
    data |= {"trigger_word": "w", "alpha_mask": True, "validation_data_dir": image_folder}
    settings = {"train": {"steps": 3}, "validation": {"num_inference_steps": 2}}
    named = run_config(tiny_sd_dir, image_folder, tmp_path / "named", data=data, **settings)
    train(named)
    cached = set((tmp_path / "cache").iterdir())
    files = {"train_data_dir": image_folder, "dataset_name": None}
    plain = run_config(tiny_sd_dir, image_folder, tmp_path / "plain", data=data | files, **settings)
    for number, color in enumerate(COLORS.values()):
        (image_folder / f"{number}.png").write_bytes(encoded(color))
    train(plain)
    assert set((tmp_path / "cache").iterdir()) == cached
    one, other = (load_file(run.output_dir / "adapter/adapter_model.safetensors") for run in (named, plain))
    assert all(torch.equal(one[name], other[name]) for name in one)
    # The run's own configuration finds the dataset again, and a report shows its pictures.
    again, problems = load_config(named.output_dir / "config.toml"), []
    assert again == named
    assert len(read_pictures(again, named.output_dir, problems).training) == 4 and problems == []
    assert "data.dataset_name" not in shareable_settings(again)
    hub = again.model_copy(update={"data": DataConfig(dataset_name="owner/pictures")})
    assert shareable_settings(hub)["data.dataset_name"] == "owner/pictures"


def test_the_network_is_off(capsys):
    arguments = ["--data.dataset_name", "owner/pictures", "--without-base"]
    assert main(["data", "check", *arguments, "--json"]) == 2
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem.startswith("data.dataset_name 'owner/pictures' cannot be loaded: ") and "HF_HUB_OFFLINE" in problem


def test_without_the_package(colors, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FeraError, match=r"needs datasets .*pip install 'fera\[datasets\]'"):
        find(colors)


def test_exactly_one_source():
    with pytest.raises(ValueError, match=r"missing key data\.train_data_dir: set it, or data\.dataset_name"):
        DataConfig()
    with pytest.raises(ValueError, match="keep one"):
        DataConfig(train_data_dir="x", dataset_name="y")
    with pytest.raises(ValueError, match="dataset_config_name is set"):
        DataConfig(train_data_dir="x", dataset_config_name="y")


def test_check_captions_names_the_dataset(tmp_path):
    config = DataConfig(dataset_name=str(save(tmp_path / "set", [row(encoded())], [""])))
    with pytest.raises(FeraError, match=f"1 of 1 pictures in {tmp_path / 'set'} have no caption"):
        check_captions(scan_training(config), config.source, config)


@pytest.fixture
def stream(tmp_path):
    """Six rows in two files."""
    for number in range(2):
        images = [row(encoded(color)) for color in ("red", "green", "blue")]
        save(tmp_path / "set", images, [f"{number} {place}" for place in range(3)], f"train-{number:05d}-of-00002")
    return tmp_path / "set"


def test_the_first_rows_of_a_stream(stream, cache):
    found = scan_training(DataConfig(dataset_name=str(stream), dataset_rows=4))
    assert [example.caption for example in found.examples] == ["0 0", "0 1", "0 2", "1 0"]
    whole = scan_training(DataConfig(dataset_name=str(stream), dataset_rows=100)).examples
    assert len(whole) == 6 and found.examples == whole[:4]
    assert not list(cache.rglob("*.arrow")), "nothing is copied beside the pictures"
    assert len(check_images(found.examples, skip_bad=False)[0]) == 4
    assert whole == scan_training(DataConfig(dataset_name=str(stream))).examples


def test_a_stream_that_breaks_off(stream):
    path = sorted(stream.glob("*.parquet"))[1]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FeraError, match=r"data\.dataset_name .*set.* breaks off"):
        scan_training(DataConfig(dataset_name=str(stream), dataset_rows=6))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train_data_dir": "x", "dataset_rows": 3}, "data.dataset_rows is set, but data.dataset_name is not"),
        ({"dataset_name": "x", "dataset_rows": 3, "dataset_split": "train[:9]"}, "leave the brackets out"),
    ],
)
def test_streams_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        DataConfig(**settings)
