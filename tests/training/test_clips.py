"""Runs on clips: Wan, from files to an mp4."""

import json
from pathlib import Path

import pytest
import torch
from cache_cases import entries
from clip_cases import clip_folder, frame, write_folder, write_video
from diffusers import WanPipeline
from PIL import Image
from trained_cases import wan
from training_cases import assert_resumes, log_of, run_config

import fera
from fera.cli.main import main
from fera.data.buckets import Shape
from fera.data.clips import video
from fera.data.clips.clip import Part
from fera.data.clips.reading import frames_of, look_at
from fera.data.tensors import to_clip
from fera.errors import FeraError
from fera.models.families import family_of
from fera.report import ReportRequest, write_report
from fera.training import to_toml, train
from fera.training.step.order import order_of


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    wan.make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def clips(tmp_path):
    return clip_folder(tmp_path / "clips")


def clip_config(base, clips, output, **sections):
    data = {"train_data_dir": clips, "cache_dir": output.parent / "cache", "resolution": 32, "num_frames": [5, 17]}
    return run_config(base, clips, output, **{**sections, "data": data | sections.get("data", {})})


def test_a_run_resumes_bit_for_bit_and_draws_clips(base, clips, tmp_path):
    settings = {
        "train": {"steps": 4, "checkpointing_steps": 2, "batch_size": 2, "consistency_weight": 0.1},
        "data": {"num_frames": [5, 17], "random_flip": True, "validation_fraction": 0.2},
        "validation": {"prompts": ["a red rocket"], "num_inference_steps": 2, "loss_samples": 2, "num_frames": 9},
    }
    straight = clip_config(base, clips, tmp_path / "straight", **settings)
    assert_resumes(straight, clip_config(base, clips, tmp_path / "stopped", **settings), 2, "loss", "held_out_loss")
    samples = straight.output_dir / "samples"
    drawn, _ = look_at(samples / "step-000004-000.mp4")
    assert drawn.frames == 9 and drawn.frame_rate == 16 and drawn.size == (32, 32)
    assert json.loads((samples / "step-000004.json").read_text())["num_frames"] == 9
    # Four frames side by side, each enlarged as much as the grid's smallest cell asks for.
    assert Image.open(samples / "step-000004.png").width > 4 * 32
    page = write_report(ReportRequest(straight.output_dir, draw=False)).read_text(encoding="utf-8")
    assert page.count("Training picture: ") >= 3


def test_the_cache_holds_what_the_autoencoder_makes_of_the_frames(base, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    path = write_video(folder / "a.mp4", rate=32, frames=40, size=(64, 32))
    config = clip_config(
        base, folder, tmp_path / "run", data={"num_frames": [9], "instance_prompt": "x"}, train={"steps": 1}
    )
    train(config)
    (held,) = entries(tmp_path / "cache", "latent").values()
    pipe = wan.make_pipeline()
    pixels = to_clip(frames_of(path, look_at(path)[0], Part(0, 9, 16.0)), (32, 32))
    assert pixels.shape == (3, 9, 32, 32) and -1 <= pixels.min() < pixels.max() <= 1
    with torch.no_grad():
        latent = family_of(pipe).clean_latents(pipe.vae, pixels[None])[0]
    torch.testing.assert_close(held["mean"], latent)


def test_a_clip_is_decoded_once(base, clips, tmp_path, monkeypatch):
    decoded = []
    frames = video.frames

    def counted(path):
        for number, shown in enumerate(frames(path)):
            decoded.append((path.name, number))
            yield shown

    monkeypatch.setattr(video, "frames", counted)
    train(clip_config(base, clips, tmp_path / "one", train={"steps": 2}))
    # The look at a video takes its first frame alone.
    assert max(decoded.count(item) for item in decoded if item[1] > 0) == 1
    decoded.clear()
    train(clip_config(base, clips, tmp_path / "two", train={"steps": 2}))
    assert {number for _, number in decoded} == {0}


def test_batches_have_one_shape():
    shapes: list[Shape] = [(32, 32), (32, 32, 9), (32, 32, 17), (32, 32, 9), (32, 32)]
    config = run_config(Path("x"), Path("x"), Path("x"))
    order = order_of(shapes, config)
    batches = [order.rows(place) for place in range(6)]
    assert all(len({shapes[row] for row in rows}) == 1 for rows in batches)
    assert sorted(row for rows in batches[:3] for row in rows) == list(range(5))


def test_a_large_set_does_not_fill_the_memory(base, clips, tmp_path):
    """Of clips no latents are kept in memory."""
    from fera.data.cache.encoded import EncodedSet
    from fera.training.start import prepare

    held = []
    encode = prepare.encode

    def noted(*arguments, **settings):
        held.extend(sets := encode(*arguments, **settings))
        return sets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "encode", noted)
        train(clip_config(base, clips, tmp_path / "run", train={"steps": 2}))
    training = held[0]
    assert isinstance(training, EncodedSet) and len(training) == 5
    assert training.cache._kept == {}


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (lambda folder: write_folder(folder / "a", 3), {}, "a has 3 frames at 16 a second, fewer than 5"),
        (lambda folder: write_video(folder / "a.mp4", rate=10), {}, "has 10 frames a second, fewer than the 16"),
        (lambda folder: write_folder(folder / "a"), {"num_frames": [6]}, "1 more than a multiple of 4: 5 or 9"),
        (lambda folder: (folder / "a.mp4").write_bytes(b"x" * 99), {}, "is damaged or no video that can be read"),
    ],
)
def test_what_cannot_be_trained_is_one_error(base, tmp_path, capsys, make, settings, words):
    folder = tmp_path / "clips"
    folder.mkdir()
    make(folder)
    config = clip_config(base, folder, tmp_path / "run", data={"instance_prompt": "x", **settings})
    (tmp_path / "run.toml").write_text(to_toml(config))
    for command in (["train"], ["data", "check"]):
        assert main([*command, str(tmp_path / "run.toml")]) == 2
        captured = capsys.readouterr()
        assert words in " ".join((captured.err + captured.out).split())
    assert not (tmp_path / "run" / "adapter").exists()


def test_bad_clips_are_skipped_on_demand(base, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    write_folder(folder / "a", 3)
    write_folder(folder / "b", 6)
    (folder / "c.mp4").write_bytes(b"x" * 99)
    data = {"instance_prompt": "x", "skip_bad": True}
    config = clip_config(base, folder, tmp_path / "run", data=data, train={"steps": 1})
    summary = train(config)
    assert summary.training_pictures == 1 and len(log_of(config, "loss")) == 1


def test_a_base_of_pictures_is_refused(emoji_like_base, clips, tmp_path):
    with pytest.raises(FeraError, match="data.num_frames is set, but StableDiffusionPipeline draws pictures"):
        train(clip_config(emoji_like_base, clips, tmp_path / "run", data={"resolution": 16}))


@pytest.fixture
def emoji_like_base(tmp_path):
    from tiny import make_sd_pipeline

    make_sd_pipeline().save_pretrained(tmp_path / "sd")
    return tmp_path / "sd"


def test_a_still_folder_trains_as_clips_of_one_frame(base, tmp_path):
    folder = tmp_path / "stills"
    folder.mkdir()
    for number in range(2):
        frame(number).save(folder / f"{number}.png")
    config = run_config(
        base, folder, tmp_path / "run", data={"resolution": 32, "instance_prompt": "x"}, train={"steps": 2}
    )
    assert train(config).training_pictures == 2 and len(log_of(config, "loss")) == 2


@pytest.mark.parametrize("format", ["diffusers", "comfyui"])
def test_a_run_on_clips_is_exported_as_a_plain_lora(base, clips, tmp_path, format):
    """It draws what the adapter draws with the same gate held still, in a pipeline without fera's layers."""
    config = clip_config(
        base, clips, tmp_path / "run", train={"steps": 2, "learning_rate": 0.05}, data={"num_frames": [5]}
    )
    train(config)
    file = tmp_path / "lora.safetensors"
    assert main(["export", str(config.output_dir), "--format", format, "--gate", "uniform", "--output", str(file)]) == 0

    def draw(pipe):
        pipe.set_progress_bar_config(disable=True)
        call = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "output_type": "latent"}
        return pipe("a red rocket", generator=torch.Generator().manual_seed(0), return_dict=False, **call)[0]

    plain, merged, fresh = (WanPipeline.from_pretrained(base) for _ in range(3))
    fera.load_adapter(merged, config.output_dir)
    fera.merge(merged, "uniform")
    fresh.load_lora_weights(tmp_path, weight_name=file.name)
    before, expected = draw(plain), draw(merged)
    assert (draw(fresh) - expected).norm() < 0.02 * (expected - before).norm()
