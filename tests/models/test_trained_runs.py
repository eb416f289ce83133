"""Every family by the command line: trained, cut off, resumed, drawn."""

import pytest
import torch
from clip_cases import clip_folder
from PIL import Image
from sound_cases import sound_folder
from trained_calls import CAPTION, draw, mask_of, sources_of
from trained_cases import CASES
from training_cases import log_of, power_cut, run_config

import fera
from fera.cli.main import main
from fera.generation import generate, generate_clips, generate_sounds
from fera.models.families import family_of
from fera.training import to_toml, train

pytest_plugins = ("trained_calls",)


def pair_settings(case, image_folder, tmp_path):
    """Keys of [data] and [validation] for a case that has sources; nothing for the others."""
    if not case.sources:
        return {}, {}
    folders = []
    for number, one in enumerate(sources_of(case)):
        folders.append(tmp_path / f"sources-{number}")
        folders[-1].mkdir()
        for image in image_folder.glob("*.png"):
            same = one.size == (case.width, case.height)
            (one.resize(Image.open(image).size) if same else one).save(folders[-1] / image.name)
    data = {"source_path": [] if case.is_filled else list(map(str, folders))}
    drawn = {"sources": ["|".join(str(folder / "0.png") for folder in folders)]}
    if case.is_filled:
        masks = tmp_path / "masks"
        masks.mkdir()
        for image in image_folder.glob("*.png"):
            mask_of(case).resize(Image.open(image).size).save(masks / image.name)
        data["mask_path"], drawn["masks"] = masks, [str(masks / "0.png")]
    return data, drawn


def moving(folder, case):
    """A folder of clips, without the still picture where frames are given."""
    if case.given:
        (folder / "e.png").unlink()
        (folder / "e.txt").unlink()
    return folder


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * case.variant) for case in CASES],
)
def test_it_trains_resumes_and_draws(pipe, case, image_folder, tmp_path):
    """From a saved pipeline to a picture, by the command line; the denoiser is cut off after its first step."""
    pipe.save_pretrained(tmp_path / "base")
    case.repair(tmp_path / "base")
    data, drawn = pair_settings(case, image_folder, tmp_path)
    folder = image_folder
    if case.frames:
        data |= {"num_frames": [case.frames], "frame_rate": 16, "last_frame": case.given == 2}
        folder = moving(clip_folder(tmp_path / "clips"), case)
    if case.given:  # drawn from a held-out clip
        data["validation_fraction"], drawn = 0.25, {"loss_samples": 2}
    if case.seconds:
        rate = family_of(pipe).sound.rate
        data |= {"seconds": [case.seconds]}
        folder = sound_folder(tmp_path / "sounds", seconds=case.seconds, rate=rate)
        drawn = {"loss_samples": 2}
    else:
        data |= {"resolution": max(case.height, case.width)}
    config = run_config(
        tmp_path / "base",
        folder,
        tmp_path / "run",
        data=data,
        train={"steps": 2, "checkpointing_steps": 1, "consistency_weight": 0.1},
        adapter={"r": 2},
        **({"validation": {"prompts": [CAPTION], "num_inference_steps": 2, **drawn}} if drawn else {}),
    )
    (tmp_path / "run.toml").write_text(to_toml(config))
    with power_cut(1):
        train(config)
    assert main(["train", str(tmp_path / "run.toml"), "--resume"]) == 0
    assert len(log_of(config, "loss")) == 2
    assert not drawn or len(list((tmp_path / "run" / "samples").glob("step-*.png"))) == 2
    plain = draw(pipe, case)
    fera.load_adapter(pipe, tmp_path / "run")
    assert not torch.equal(draw(pipe, case), plain)
    if case.given:
        assert len(list((tmp_path / "run" / "samples").glob("step-*.mp4"))) == 2
        frames = generate_clips(
            pipe,
            [CAPTION],
            num_inference_steps=2,
            num_frames=case.frames,
            sources=[sources_of(case)],
            height=case.height,
            width=case.width,
        )[0]
        assert len(frames) == case.frames and frames[0].size == (case.width, case.height)
        return
    if case.seconds:
        with fera.trace(pipe) as steps:
            (sound,) = generate_sounds(pipe, [CAPTION], num_inference_steps=2, seconds=case.seconds)
        assert sound.seconds == pytest.approx(case.seconds, rel=0.1) and sound.samples.std() > 0
        assert len(steps) >= 2 and all(step.indicator.shape[1] == 3 for step in steps)
        return
    with fera.trace(pipe) as steps:
        given = {"sources": [sources_of(case)]} if case.sources else {}
        given |= {"masks": [mask_of(case)]} if case.is_filled else {}
        picture = generate(pipe, [CAPTION], num_inference_steps=2, height=case.height, width=case.width, **given)[0]
    assert picture.size == (case.width, case.height)
    assert all(0 <= float(gate) <= 1 for step in steps for gate in step.gates.flatten())
