"""Sheets of pictures: what is shown is chosen by a rule."""

import hashlib
from dataclasses import replace

import pytest
from PIL import Image
from study_cases import make_result, make_study

from fera.comparison import sheets

PROMPTS = [f"thing {number}" for number in range(12)]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """What a grid was made of: its rows by label, and its prompts."""
    made = []
    monkeypatch.setattr(
        sheets, "prompt_grid", lambda rows, prompts: made.append((rows, prompts)) or Image.new("RGB", (4, 4))
    )
    return made


def with_pictures(result, output, prompts=PROMPTS):
    folder = result.run.folder(output) / "evaluation"
    folder.mkdir(parents=True)
    rows = []
    for number, prompt in enumerate(prompts):
        Image.new("RGB", (8, 8), (result.seed, number, 0)).save(folder / f"{number}.png")
        rows.append({"prompt": prompt, "repetition": 0, "seed": number, "file": f"{number}.png"})
    return replace(result, metrics=result.metrics | {"pictures": rows})


def test_the_seed_that_most_have_and_the_first_prompts_by_their_hash(tmp_path, drawn):
    results = [
        with_pictures(make_result("ref", "twemoji", 0, [1.0]), tmp_path),
        with_pictures(make_result("ref", "twemoji", 1, [1.0]), tmp_path),
        with_pictures(make_result("new", "twemoji", 1, [1.0]), tmp_path, PROMPTS[::-1]),
        make_result("new", "openmoji", 0, [1.0]),  # of a collection: its pictures are elsewhere
    ]
    assert sheets.write_sheets(make_study(), results, tmp_path, tmp_path) == ["pictures-twemoji.png"]
    ((rows, prompts),) = drawn
    assert prompts == sorted(PROMPTS, key=lambda prompt: hashlib.sha256(prompt.encode()).digest())[:8]
    assert list(rows) == ["LoRA", "new"]
    for label, order in (("LoRA", PROMPTS), ("new", PROMPTS[::-1])):
        assert [image.getpixel((0, 0)) for image in rows[label]] == [(1, order.index(prompt), 0) for prompt in prompts]


def test_methods_share_their_prompts_and_seeds_that_tie_are_the_first(tmp_path, drawn):
    results = [
        with_pictures(make_result("ref", "twemoji", 1, [1.0]), tmp_path, PROMPTS[:3]),
        with_pictures(make_result("ref", "twemoji", 0, [1.0]), tmp_path, PROMPTS[:3]),
        with_pictures(make_result("new", "twemoji", 0, [1.0]), tmp_path, PROMPTS[1:]),
    ]
    sheets.write_sheets(make_study(), results[:2], tmp_path, tmp_path)
    sheets.write_sheets(make_study(), results, tmp_path, tmp_path)
    assert drawn[0][0]["LoRA"][0].getpixel((0, 0))[0] == 0
    assert set(drawn[1][1]) == set(PROMPTS[1:3])


def test_no_sheet_without_pictures(tmp_path, drawn):
    assert sheets.write_sheets(make_study(), [make_result("ref", "twemoji", 0, [1.0])], tmp_path, tmp_path) == []
    assert drawn == []
