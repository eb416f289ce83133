"""Bases that are given frames of a clip: which frames, what is told of them, and what does not go."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cache_cases import entries
from clip_cases import frame, write_folder, write_video
from diffusers import WanImageToVideoPipeline
from models import stable_video
from models.inputs import picture
from PIL import Image
from trained_cases import animatediff, hunyuan_video, wan
from training_cases import run_config

from fera.cli.main import main
from fera.data.cache.encoder import Encoder
from fera.data.checking import check_images
from fera.data.clips.fitting import clip_settings, fit_clips
from fera.data.example import Example, Source
from fera.data.pair_checks import with_sources
from fera.errors import FeraError
from fera.generation import generate_clips
from fera.generation.sources import read_sources
from fera.models.families import family_of
from fera.models.wan import frames_of
from fera.pipelines.base import load_base
from fera.pipelines.skeletons import skeletons
from fera.pipelines.waiting import Base
from fera.report.drawing import Sampling, draw_pictures
from fera.report.folder import read_run
from fera.support.progress import SILENT
from fera.training import to_toml, train

SIZE = (48, 32)


@pytest.fixture(scope="module")
def pipe():
    return wan.make_image_to_video()


@pytest.fixture
def example(tmp_path):
    (tmp_path / "clip").mkdir()
    for number in range(9):
        picture(number, 32, 48).save(tmp_path / "clip" / f"{number}.png")
    examples, _ = check_images([Example(tmp_path / "clip", "it moves")], skip_bad=False, clips=True)
    return fit_clips(examples, [5], 16.0, skip_bad=False)[0][0]


def encode(pipe, examples, folder, **settings):
    arguments = {"center_crop": True, "random_flip": False, "seed": 0, "progress": lambda *_: None} | settings
    encoder = Encoder(pipe, family_of(pipe), folder, torch.device("cpu"), [SIZE], **arguments)
    return encoder.encode(with_sources(examples, family_of(pipe), "X"))


def test_the_first_frame_is_given_and_the_last_of_those_that_are_trained_on(pipe, example):
    (one,) = with_sources([example], family_of(pipe), "X")
    assert [source.frame for source in one.sources] == [0]
    (both,) = with_sources([example], family_of(wan.make_between()), "X")
    assert [source.frame for source in both.sources] == [0, 4]


def test_what_is_told_of_frames_is_what_the_pipeline_makes_of_them(pipe):
    """A mask of 4 channels, as many as frames a latent frame, and the latents of a clip that is grey elsewhere."""
    images = [frame(number) for number in (0, 4)]
    frames = [pipe.video_processor.preprocess(image, height=32, width=48) for image in images]
    for given in (frames[:1], frames):
        last = given[1] if len(given) > 1 else None
        told = pipe.prepare_latents(given[0], 1, 4, 32, 48, 5, torch.float32, torch.device("cpu"), last_image=last)[1]
        with torch.no_grad():
            torch.testing.assert_close(frames_of(pipe.vae, given, 5), told.flatten(1, 2))


def test_mirrored_clips_have_mirrored_frames_and_texts_are_encoded_once(pipe, example, tmp_path):
    encoded = encode(pipe, [example, example], tmp_path / "cache", random_flip=True)
    plain, mirrored = (encoded.batch([0, 1], flipped=[flip] * 2).conditions for flip in (False, True))
    for name in ("source_0", "encoder_hidden_states_image"):
        assert not torch.allclose(plain[name], mirrored[name])
    mask = plain["source_0"].unflatten(1, (-1, 2))[:, :4]
    assert mask[:, :, 0].all() and not mask[:, :, 1].any()
    kinds = [name.split("-")[0] for name in entries(tmp_path / "cache")]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"text": 2, "seen": 2, "latent": 4}


def test_pictures_among_the_clips_are_refused(pipe, example, tmp_path):
    frame(3).save(tmp_path / "still.png")
    examples, _ = check_images([Example(tmp_path / "still.png", "x")], skip_bad=False)
    with pytest.raises(
        FeraError, match=r"a X draws what follows a given frame, and 1 examples have but one: still\.png"
    ):
        with_sources([example, *examples], family_of(pipe), "X")


def test_other_sources_are_refused(pipe, example):
    other = Example(example.image, "x", clip=example.clip, part=example.part, sources=(Source(Path("a.png")),))
    with pytest.raises(FeraError, match="1 clips have sources"):
        with_sources([other], family_of(pipe), "X")


@pytest.mark.parametrize("make", [wan.make_pipeline, wan.make_image_to_video, wan.make_image_to_video_5b])
def test_a_last_frame_that_the_base_does_not_take_is_refused(make, example):
    with pytest.raises(FeraError, match=r"data\.last_frame is set, but a X is given no last frame"):
        with_sources([example], family_of(make()), "X", last_frame=True)


def test_last_frame_without_clips_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.last_frame is set, but data\.num_frames is not"):
        run_config("emoji", tmp_path, tmp_path / "run", data={"last_frame": True})


def test_a_prompt_without_a_frame_to_begin_with_is_refused(pipe, tmp_path):
    """Before anything is encoded."""
    pipe.save_pretrained(tmp_path / "base")
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4")
    (tmp_path / "clips" / "a.txt").write_text("it moves")
    config = run_config(
        tmp_path / "base",
        tmp_path / "clips",
        tmp_path / "run",
        data={"resolution": 48, "num_frames": [5]},
        validation={"prompts": ["a red rocket"]},
    )
    with pytest.raises(FeraError, match=r"validation\.prompts: a WanImageToVideoPipeline draws from 1 source pictures"):
        train(config)
    assert not list((tmp_path / "run").glob("cache/*"))
    with pytest.raises(FeraError, match="draws from 1 source pictures a prompt, and got none"):
        generate_clips(pipe, ["a red rocket"], num_frames=5)


def test_the_check_before_a_run_knows_what_is_given(pipe, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "base")
    (tmp_path / "clips").mkdir()
    for name in "ab":
        write_video(tmp_path / "clips" / f"{name}.mp4")
        (tmp_path / "clips" / f"{name}.txt").write_text("it moves")
    config = run_config(
        tmp_path / "base",
        tmp_path / "clips",
        tmp_path / "run",
        data={"resolution": 32, "num_frames": [5], "validation_fraction": 0.5},
        validation={"prompts": ["a red rocket"]},
    )
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert main(["data", "check", str(tmp_path / "run.toml")]) == 0
    assert "image_encoder" in capsys.readouterr().out


def test_a_clip_stands_for_its_first_and_its_last_frame(tmp_path):
    write_folder(tmp_path / "clip", 9)
    frame(3).save(tmp_path / "a.png")
    ((first, last), (still, ending)) = read_sources(
        [f"{tmp_path / 'clip'}|{tmp_path / 'clip'}", f"{tmp_path / 'a.png'}|{tmp_path / 'clip'}"], 2
    )
    for image, number in ((first, 0), (last, 8), (still, 3), (ending, 8)):
        assert isinstance(image, Image.Image) and np.array_equal(np.asarray(image), np.asarray(frame(number)))
    with pytest.raises(FeraError, match=r"source picture .*empty has no frames"):
        (tmp_path / "empty").mkdir()
        read_sources([str(tmp_path / "empty")], 1)


def test_a_base_without_ftfy_is_refused_by_name(pipe, monkeypatch):
    monkeypatch.setattr("fera.models.wan.find_spec", lambda name: None)
    with pytest.raises(FeraError, match="a WanImageToVideoPipeline cleans prompts with ftfy, which is not installed"):
        family_of(pipe)


def test_a_hunyuan_video_whose_first_frames_are_left_out_is_refused():
    pipe = hunyuan_video.make_image_to_video()
    pipe.transformer.register_to_config(image_condition_type="latent_concat")
    with pytest.raises(FeraError, match="its pipeline leaves out the first 4 frames"):
        family_of(pipe)


def test_a_clip_longer_than_the_base_has_places_for_is_refused(tmp_path):
    config = run_config("emoji", tmp_path, tmp_path / "run", data={"num_frames": [33]})
    pipe = animatediff.make_pipeline()
    with pytest.raises(FeraError, match=r"data\.num_frames is 33, but this base draws at most 32 frames"):
        clip_settings(config.data, family_of(pipe).video, "X")
    with pytest.raises(FeraError, match="`num_frames` is 33, but this AnimateDiffPipeline draws at most 32"):
        generate_clips(pipe, ["a red rocket"], num_frames=33)


def test_a_base_that_is_told_nothing_of_captions_has_them_in_the_cache(tmp_path, example):
    """An entry without a tensor."""
    pipe = stable_video.make_pipeline()
    for _ in range(2):
        encoded = encode(pipe, [example], tmp_path / "cache")
        assert set(encoded.batch([0]).conditions) == {"source_0", "image_embeds"}


def test_a_base_may_be_another_pipeline_of_the_same_parts(tmp_path):
    wan.make_5b().save_pretrained(tmp_path / "base")
    name = f"{tmp_path / 'base'}#WanImageToVideoPipeline"
    waiting = Base(name, {"default": torch.float32})
    assert isinstance(waiting.pipe, WanImageToVideoPipeline) and "transformer" in waiting.waiting
    waiting.bring()
    assert not waiting.waiting and waiting.files("transformer")
    pipe = load_base(name)
    assert isinstance(pipe, WanImageToVideoPipeline) and pipe.name_or_path == name
    assert type(load_base(str(tmp_path / "base"))).__name__ == "WanPipeline"
    assert set(skeletons(name)) == {"transformer"}
    for wrong in ("WanTransformer3DModel", "NoPipeline", "os.path", ""):
        with pytest.raises(FeraError, match=r"has no pipeline .*, which is behind #"):
            load_base(f"{tmp_path / 'base'}#{wrong}")
    with pytest.raises(FeraError, match="cannot load base"):
        load_base(f"{tmp_path / 'base'}#StableDiffusionPipeline")


def test_a_report_draws_from_the_runs_clips(pipe, tmp_path):
    """What a base that is given frames needs, where the run names no sources."""
    pipe.save_pretrained(tmp_path / "base")
    (tmp_path / "clips").mkdir()
    for name in "ab":
        write_video(tmp_path / "clips" / f"{name}.mp4")
        (tmp_path / "clips" / f"{name}.txt").write_text("it moves")
    config = run_config(
        tmp_path / "base",
        tmp_path / "clips",
        tmp_path / "run",
        data={"resolution": 32, "num_frames": [5]},
        train={"steps": 1},
        adapter={"r": 2},
    )
    train(config)
    drawn = draw_pictures(read_run(tmp_path / "run"), Sampling(prompts=["it moves"] * 3, steps=1), SILENT)
    assert len(drawn.base) == len(drawn.adapted) == 3
