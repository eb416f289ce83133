"""What lies in a data folder, in each of the layouts, and what a stranger's folder may not do."""

import itertools
import json
import os
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from fera import FeraError
from fera.config import DataConfig
from fera.data.captions import caption_variants, with_trigger
from fera.data.checking import hold_out, repeat
from fera.data.sources import find_examples, scan


def config(**settings: object) -> DataConfig:
    return DataConfig(train_data_dir=Path("x"), **settings)


def find(folder: Path, **settings: object):
    return find_examples(folder, config(**settings))


def picture(path: Path, caption: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


@pytest.fixture
def kohya(tmp_path):
    picture(tmp_path / "set" / "3_sks dog" / "a.png", "sks dog on a mat")
    picture(tmp_path / "set" / "3_sks dog" / "b.png")
    picture(tmp_path / "set" / "1_cat" / "a.png")
    return tmp_path / "set"


def test_folders_with_repeats(kohya):
    found = scan(kohya, config())
    assert found.layout == "repeats" and found.notes == []
    assert [(example.name, example.caption, example.repeats) for example in found.examples] == [
        ("1_cat/a.png", "cat", 1),
        ("3_sks dog/a.png", "sks dog on a mat", 3),
        ("3_sks dog/b.png", "sks dog", 3),
    ]
    names = [example.name for example in repeat(found.examples)]
    assert len(names) == 7 and names.count("3_sks dog/a.png") == 3
    # Pictures of one file name in two folders are told apart.
    train, held = hold_out(found.examples, 0.3)
    assert len(train) == 2 and len(held) == 1


def test_what_lies_beside_folders_with_repeats_is_told(kohya):
    picture(kohya / "other" / "deep" / "x.png")
    picture(kohya / "1_cat" / "deep" / "x.png")
    notes = scan(kohya, config()).notes
    assert [note.split(" left")[0] for note in notes] == ["1_cat/: 1 pictures", "other/: 1 pictures"]
    picture(kohya / "loose.png")
    with pytest.raises(FeraError, match=r"loose\.png.*beside folders with repeats.*'1_words'"):
        find(kohya)


@pytest.mark.parametrize("name", ["0_cat", "99999999_cat"])
def test_absurd_repeats(tmp_path, name):
    picture(tmp_path / name / "a.png")
    with pytest.raises(FeraError, match=r"repeats; from 1 to 10000"):
        find(tmp_path)


def test_folders_inside_a_flat_one_are_told(image_folder):
    picture(image_folder / "more" / "x.png")
    assert scan(image_folder, config()).notes == ["more/: 1 pictures left alone, for they lie in a folder of their own"]


def test_a_prompt_that_pictures_share(image_folder):
    (image_folder / "1.txt").unlink()
    assert [example.caption for example in find(image_folder, instance_prompt="a sks thing")][:2] == [
        "a red rocket",
        "a sks thing",
    ]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a cat", "ohwx, a cat"),
        ("photo of [trigger], sitting", "photo of ohwx, sitting"),
        ("an ohwx cat", "an ohwx cat"),
        ("an ohwxish cat", "ohwx, an ohwxish cat"),
        ("", "ohwx"),
    ],
)
def test_trigger_word(caption, expected):
    assert with_trigger(caption, config(trigger_word="ohwx")) == expected
    assert with_trigger(caption, config()) == caption


def test_trigger_word_in_every_layout(kohya, image_folder):
    assert find(kohya, trigger_word="w")[0].caption == "w, cat"
    (image_folder / "metadata.jsonl").write_text('{"file_name": "0.png"}\n')
    found = find(image_folder, trigger_word="w", allow_missing_captions=True)
    assert {example.caption for example in found} == {"w"}


def test_shuffled_tags():
    settings = config(shuffle_caption=True, keep_tokens=2, caption_variants=50)
    variants = caption_variants("a, b, c,d ,, e", settings, seed=0)
    assert all(variant.startswith("a, b, ") for variant in variants)
    assert {frozenset(variant.split(", ")) for variant in variants} == {frozenset("abcde")}
    assert len(variants) == len(set(variants)) == 6  # all orders of c, d, e
    assert variants == caption_variants("a, b, c,d ,, e", settings, seed=0)
    few = config(shuffle_caption=True, caption_variants=3)
    assert len(caption_variants("a, b, c, d, e, f", few, seed=0)) == 3
    assert caption_variants("a, b, c, d, e, f", few, seed=0) != caption_variants("a, b, c, d, e, f", few, seed=1)


def test_the_trigger_word_leads_and_the_separator_is_kept():
    settings = config(shuffle_caption=True, trigger_word="w", caption_separator="|")
    caption = with_trigger("a | b", settings)
    assert caption == "w| a | b"
    assert set(caption_variants(caption, settings, seed=0)) == {"w| a| b", "w| b| a"}
    assert caption_variants("no tags", settings, seed=0) == ["no tags"]
    assert caption_variants("", settings, seed=0) == [""]
    assert caption_variants("a, b", config(), seed=0) == ["a, b"]


@pytest.mark.parametrize(
    ("word", "written", "first", "others"),
    [
        ("ohwx, woman", "red, blue, green", "ohwx, woman", {"red", "blue", "green"}),
        ("ohwx,woman", "red, blue, green", "ohwx,woman", {"red", "blue", "green"}),
        ("ohwx, woman", "[trigger] sitting, blue, green", "ohwx, woman sitting", {"blue", "green"}),
        ("ohwx", "photo of [trigger], blue, green", "photo of ohwx", {"blue", "green"}),
        ("ohwx", "an ohwx cat, blue, green", "an ohwx cat", {"blue", "green"}),
        ("a, b, c", "d, e", "a, b, c", {"d", "e"}),
    ],
)
def test_any_trigger_word_stays_in_front_and_whole(word, written, first, others):
    settings = config(shuffle_caption=True, trigger_word=word, caption_variants=100)
    variants = caption_variants(with_trigger(written, settings), settings, seed=0)
    orders = {f"{first}, {', '.join(order)}" for order in itertools.permutations(others)}
    assert len(variants) == len(orders) and set(variants) == orders


def test_a_trigger_word_in_the_midst_moves_whole():
    settings = config(shuffle_caption=True, trigger_word="ohwx, woman", caption_variants=100)
    variants = caption_variants("red, ohwx, woman, blue", settings, seed=0)
    assert set(variants) == {", ".join(order) for order in itertools.permutations(["red", "ohwx, woman", "blue"])}
    # Letters of the word inside of another are not the word.
    settings = config(shuffle_caption=True, trigger_word="a", caption_variants=100)
    assert len(caption_variants("cat, a, b", settings, seed=0)) == 6


@pytest.mark.parametrize(("keep", "orders"), [(1, 6), (2, 6), (3, 2), (4, 1), (9, 1)])
def test_tags_of_a_trigger_word_count_among_those_that_are_kept(keep, orders):
    settings = config(shuffle_caption=True, trigger_word="ohwx, woman", keep_tokens=keep, caption_variants=100)
    variants = caption_variants("ohwx, woman, a, b, c", settings, seed=0)
    front = ", ".join(["ohwx", "woman", "a", "b", "c"][: max(2, keep)])
    assert len(variants) == orders and all(variant.startswith(front) for variant in variants)


@pytest.mark.parametrize(
    "settings",
    [
        {"keep_tokens": 1},
        {"mask_path": "m", "alpha_mask": True},
        {"mask_min_value": 0.1},
        {"class_prompt": "a dog"},
        {"class_data_dir": "c", "num_class_images": 3},
        {"trigger_word": ""},
        {"class_data_dir": "\0"},
    ],
)
def test_settings_that_contradict_each_other(settings):
    with pytest.raises(ValidationError):
        config(**settings)


# Captions that are shared, or not read


def test_one_caption_file_of_several_pictures_is_said(tmp_path):
    for folder in ("flat", "repeats/2_dog"):
        for name in ("a.png", "a.jpg", "a.webp", "b.png"):
            picture(tmp_path / folder / name, f"caption of {name[0]}")
    for layout, inner in (("flat", ""), ("repeats", "2_dog/")):
        found = scan(tmp_path / layout, config())
        assert [example.caption for example in found.examples] == ["caption of a"] * 3 + ["caption of b"]
        names = ", ".join(f"{inner}a.{suffix}" for suffix in ("jpg", "png", "webp"))
        assert found.notes == [f"{inner}a.txt is the caption of 3 pictures: {names}"]


def test_of_two_caption_files_the_other_is_said(tmp_path):
    for folder in ("flat", "repeats/2_dog"):
        picture(tmp_path / folder / "a.png", "as .txt")
        (tmp_path / folder / "a.caption").write_text("as .caption")
    for layout, inner in (("flat", ""), ("repeats", "2_dog/")):
        found = scan(tmp_path / layout, config())
        assert found.examples[0].caption == "as .txt"
        assert found.notes == [f"1 file is not read, for there is a .txt file of the same name: {inner}a.caption"]


def test_captions_beside_metadata_are_said(tmp_path):
    for name in ("a.png", "b.png", "deep/c.png", "d.png"):
        picture(tmp_path / name, "its own")
    (tmp_path / "d.txt").unlink()
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "x"}\n{"file_name": "b.png", "text": ""}\n'
    )
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,y\n")
    found = scan(tmp_path, config())
    assert [example.caption for example in found.examples] == ["x", "", "", ""]
    assert found.notes == [
        "2 pictures without a caption in metadata.jsonl have one beside them, which is not read: b.txt, deep/c.txt. "
        "Add rows for them, or remove metadata.jsonl",
        "1 file is not read, for metadata.jsonl has the captions: a.txt",
        "1 file is not read, for metadata.jsonl is: metadata.csv",
    ]


def test_metadata_in_a_folder_with_repeats_and_parquet_beside_pictures_are_said(kohya, image_folder):
    (kohya / "1_cat" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n')
    assert scan(kohya, config()).notes == [
        "1 file is not read, for it counts in the data folder itself alone: 1_cat/metadata.jsonl"
    ]
    (image_folder / "a.parquet").touch()
    assert scan(image_folder, config()).notes == [
        "parquet files are left alone, for there are pictures beside them: a.parquet"
    ]


# Folders of strangers


@pytest.mark.parametrize(
    "name", ["../secret.png", "a/../../secret.png", "/etc/secret.png", "C:\\secret.png", "..\\secret.png", "\\\\h\\x"]
)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_cannot_lead_out_of_the_folder(image_folder, name, kind):
    picture(image_folder.parent / "secret.png")
    text = json.dumps({"file_name": name, "text": "x"}) if kind == "jsonl" else f"file_name,text\n{name},x\n"
    (image_folder / f"metadata.{kind}").write_text(text)
    with pytest.raises(FeraError, match="leads out of the data folder"):
        find(image_folder)


@pytest.mark.parametrize("name", ["\\u0000.png", "\\ud800.png", ".", "a\\u001b[2J.png"])
def test_metadata_names_that_are_no_names(image_folder, name):
    (image_folder / "metadata.jsonl").write_text(f'{{"file_name": "{name}", "text": "x"}}')
    with pytest.raises(FeraError, match="which is no file name"):
        find(image_folder)


def test_a_name_that_is_too_long_for_a_file_is_refused(tmp_path):
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a" * 400 + ".png", "text": "x"}))
    with pytest.raises(FeraError, match="cannot be followed: .*name too long"):
        find_examples(tmp_path, DataConfig(train_data_dir=tmp_path))


@pytest.mark.parametrize("victim", ["0.png", "0.txt", "metadata.jsonl"])
def test_links_that_lead_out_are_refused_unless_wanted(image_folder, tmp_path, victim):
    outside = tmp_path / "outside"
    outside.mkdir()
    content = {"0.txt": b"a secret", "metadata.jsonl": b'{"file_name": "1.png", "text": "a secret"}\n'}
    (outside / victim).write_bytes(content.get(victim) or (image_folder / victim).read_bytes())
    (image_folder / victim).unlink(missing_ok=True)
    (image_folder / victim).symlink_to(outside / victim)
    with pytest.raises(FeraError, match=rf"{victim} is a link to .*outside.*follow_symlinks"):
        find(image_folder)
    assert find(image_folder, follow_symlinks=True, allow_missing_captions=True)


def test_links_inside_the_folder_and_to_the_folder_are_fine(image_folder, tmp_path):
    (image_folder / "copy.png").symlink_to("0.png")
    (image_folder / "copy.txt").symlink_to("0.txt")
    (tmp_path / "linked").symlink_to(image_folder)
    assert len(find(tmp_path / "linked")) == 5


def test_links_in_a_circle(image_folder):
    (image_folder / "loop.png").symlink_to("loop.png")
    (image_folder / "around").symlink_to(image_folder)
    assert len(find(image_folder)) == 4


def test_a_name_that_would_disturb_a_terminal(image_folder):
    os.rename(image_folder / "0.png", image_folder / "\x1b]0;x.png")
    with pytest.raises(FeraError, match="control characters in its name"):
        find(image_folder)


def test_captions_are_cleaned_and_bounded(image_folder):
    (image_folder / "0.txt").write_bytes(b"a\x1b[31m red\x00 rocket\x9b")
    with pytest.raises(FeraError, match="not UTF-8"):
        find(image_folder)
    (image_folder / "0.txt").write_text("a\x1b[31m red\x00 rocket\x9b", encoding="utf-8")
    assert find(image_folder)[0].caption == "a [31m red  rocket"
    (image_folder / "0.txt").write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(FeraError, match="more than 1,048,576"):
        find(image_folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", b"[" * 100_000),
        ("metadata.jsonl", b'{"file_name": "0.png", "text": ' + b"9" * 5000 + b"}"),
        ("metadata.jsonl", b'{"file_name": "0.png", "text": "\\ud800"}'),
        ("metadata.csv", b"file_name,text\n0.png," + b"x" * 200_000),
        ("metadata.csv", b"file_name,text\n0.png,x,y,z\n\x00,\n"),
        ("metadata.jsonl", b"\xff\xfe"),
    ],
)
def test_hostile_metadata(image_folder, name, content):
    (image_folder / name).write_bytes(content)
    with pytest.raises(FeraError):
        find(image_folder)
