"""The judge and what it is asked: ranks with known answers, where its knowledge ends, bad files."""

from dataclasses import replace

import pytest
import torch
from evaluation_cases import STYLES, write_judge
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fera.config import DataConfig
from fera.data.checking import find_examples
from fera.demo import STYLES as BUNDLED
from fera.demo import unpack_style
from fera.errors import FeraError
from fera.evaluation import load_judge
from fera.evaluation.concepts import gallery_of, mean_reciprocal, other_styles_gallery, share_within
from fera.features.judge_network import EMBEDDING, FEATURES, JudgeNetwork
from fera.features.pixels import PixelSet


@pytest.fixture
def pictures():
    return PixelSet([Image.new("RGB", (20, 16), color) for color in ("red", "green", "blue")], (64, 64))


def test_the_network_answers_in_its_ranges():
    network = JudgeNetwork(3).eval()
    features, logits, embeddings = network(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert features.shape == (2, FEATURES) and (features >= 0).all()
    assert logits.shape == (2, 3)
    assert embeddings.shape == (2, EMBEDDING)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(2), atol=1e-5)


def test_looking_does_not_depend_on_chunks(tmp_path, pictures):
    judge = load_judge(write_judge(tmp_path / "judge.safetensors"))
    (chunk,) = pictures
    whole, parts = judge.look([chunk]), judge.look(chunk.split(1))
    assert torch.allclose(whole.features, parts.features, atol=1e-5)
    assert torch.allclose(whole.embeddings, parts.embeddings, atol=1e-5)
    assert torch.allclose(whole.styles.sum(dim=1), torch.ones(3))


def test_a_known_style(tmp_path, pictures):
    judge = load_judge(write_judge(tmp_path / "judge.safetensors", style=1))
    assert judge.style_of(judge.look(pictures)) == (STYLES[1], "")


def test_an_unsure_judge_knows_no_style(tmp_path, pictures):
    judge = load_judge(write_judge(tmp_path / "judge.safetensors"))
    look = judge.look(pictures)
    four = replace(judge, styles=("a", "b", "c", "d"))
    unsure = replace(look, styles=torch.tensor([[0.28, 0.24, 0.24, 0.24]]).expand(3, 4))
    style, why = four.style_of(unsure)
    assert style is None and "does not know this style (nearest: a, 28%)" in why


def test_strange_pictures_have_no_known_style(tmp_path, pictures):
    judge = load_judge(write_judge(tmp_path / "judge.safetensors", reach=1e-3))
    style, why = judge.style_of(judge.look(pictures))
    assert style is None and "emoji only" in why


def test_ranks_of_known_places():
    gallery = gallery_of(["a", "b", "c"], torch.eye(3))
    query = torch.tensor([[0.9, 0.4, 0.1], [0.9, 0.4, 0.1], [0.9, 0.4, 0.1], [0.9, 0.4, 0.1]])
    ranks = gallery.ranks(query, ["a", "b", "c", "not here"])
    assert ranks == [1, 2, 3, None]
    assert mean_reciprocal(ranks) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert share_within(ranks, 1) == pytest.approx(1 / 3)
    assert share_within(ranks, 2) == pytest.approx(2 / 3)
    assert mean_reciprocal([None]) is None and share_within([None], 5) is None


def test_pictures_of_one_caption_are_one_entry():
    gallery = gallery_of(["a", "b", "a"], torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    assert gallery.captions == ("a", "b")
    assert torch.allclose(gallery.embeddings[0], torch.tensor([0.5**0.5, 0.5**0.5]))


@given(st.integers(1, 12), st.integers(0, 10**6))
def test_real_pictures_find_themselves(count, seed):
    embeddings = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    embeddings = torch.nn.functional.normalize(embeddings, dim=1)
    captions = [str(number) for number in range(count)]
    assert gallery_of(captions, embeddings).ranks(embeddings, captions) == [1] * count


def test_other_styles_leave_out_the_style_itself(tmp_path):
    judge = load_judge(write_judge(tmp_path / "judge.safetensors"))
    counts = []
    judge_look = judge.look

    class Counting:
        def look(self, pictures):
            counts.append(len(pictures))
            return judge_look(pictures)

    gallery = other_styles_gallery(Counting(), {"red heart", "no such thing"}, BUNDLED[0])
    assert gallery.captions == ("red heart",)
    assert counts == [len(BUNDLED) - 1]
    assert other_styles_gallery(judge, {"no such thing"}, BUNDLED[0]) is None


@pytest.mark.parametrize("content", [b"", b"no weights", None])
def test_a_bad_file_is_named(tmp_path, content):
    path = tmp_path / "judge.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FeraError, match=r"judge\.safetensors"):
        load_judge(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FeraError, match="format fera-judge-1"):
        load_judge(tmp_path / "other.safetensors")


@pytest.mark.parametrize("style", BUNDLED)
def test_the_bundled_judge_tells_styles_and_concepts_apart(style, tmp_path):
    """Not its quality, which docs/evaluation.md reports, but that the shipped file is the trained one."""
    judge = load_judge()
    assert set(judge.styles) == {*BUNDLED, "noto"}
    folder = unpack_style(style, tmp_path) / "test"
    examples = find_examples(folder, DataConfig(train_data_dir=folder))
    look = judge.look(PixelSet([example.image for example in examples], (64, 64)))
    assert judge.style_of(look) == (style, "")
    captions = [example.caption for example in examples]
    ranks = other_styles_gallery(judge, set(captions), style).ranks(look.embeddings, captions)
    assert mean_reciprocal(ranks) > 0.6  # by chance it would be 0.08


def test_the_bundled_judge_does_not_know_noise():
    judge = load_judge()
    noise = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert judge.style_of(judge.look([noise]))[0] is None
