"""Clips as files, and `fera generate` with a base of videos."""

import json

import av
import numpy as np
import pytest
from clip_cases import frame
from PIL import Image
from trained_cases import wan

from fera.cli.main import main
from fera.data.clips.clip import Part
from fera.data.clips.reading import frames_of, look_at
from fera.generation import contact_sheet, generate, generate_clips, save_clip


@pytest.mark.parametrize("size", [(48, 32), (47, 33)])
def test_an_mp4_holds_the_frames(tmp_path, size):
    frames = [frame(number, *size) for number in range(9)]
    save_clip(frames, tmp_path / "a.mp4", 12.5, {"prompt": "a red rocket"})
    clip, _ = look_at(tmp_path / "a.mp4")
    assert clip.frames == 9 and clip.frame_rate == pytest.approx(12.5)
    assert clip.size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    for image, wanted in zip(frames_of(tmp_path / "a.mp4", clip, Part(0, 9, 12.5)), frames, strict=True):
        seen = np.asarray(image.crop((0, 0, *size))).astype(int)
        assert np.abs(seen - np.asarray(wanted)).mean() < 12
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert json.loads(container.metadata["comment"])["prompt"] == "a red rocket"


def test_a_contact_sheet_shows_frames_from_first_to_last():
    frames = [Image.new("RGB", (10, 6), (number, 0, 0)) for number in range(21)]
    sheet = contact_sheet(frames, most=5, columns=3)
    assert sheet.size == (3 * 10 + 2 * 4, 2 * 6 + 4)
    corners = [(column * 14, row * 10) for row in range(2) for column in range(3)]
    assert [sheet.getpixel(corner)[0] for corner in corners] == [0, 5, 10, 15, 20, 255]  # the last place is empty
    assert contact_sheet(frames[:1]) is frames[0]
    assert contact_sheet(frames[:2]).size == (24, 6)


def test_generate_draws_clips_of_pipelines_of_videos_and_frames_for_pictures():
    pipe = wan.make_pipeline()
    size = {"height": 32, "width": 48, "num_inference_steps": 1}
    clips = generate_clips(pipe, ["a red rocket", "a green tree"], num_frames=5, **size)
    alone = generate_clips(pipe, ["a green tree"], num_frames=5, seed=1, batch_size=1, **size)
    assert [len(frames) for frames in clips] == [5, 5] and clips[0][0].size == (48, 32)
    pixels = [np.asarray(clip[3]).astype(int) for clip in (clips[1], alone[0])]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1
    (image,) = generate(pipe, ["a red rocket"], **size)
    assert image.size == (48, 32)


def test_the_command_writes_an_mp4_and_a_contact_sheet(tmp_path, capsys):
    wan.make_pipeline().save_pretrained(tmp_path / "base")
    call = ["generate", "a red rocket", "the sun", "--base", str(tmp_path / "base"), "--steps", "1"]
    call += ["--height", "32", "--width", "48", "--output", str(tmp_path / "out")]
    assert main([*call, "--num-frames", "17", "--frame-rate", "8"]) == 0
    told = capsys.readouterr().out.split()
    assert str(tmp_path / "out" / "000-a-red-rocket.mp4") in told
    clip, _ = look_at(tmp_path / "out" / "001-the-sun.mp4")
    assert clip.frames == 17 and clip.frame_rate == 8
    assert Image.open(tmp_path / "out" / "001-the-sun.png").size == (4 * 48 + 3 * 4, 3 * 32 + 2 * 4)  # 12 frames
    assert json.loads((tmp_path / "out" / "generation.json").read_text())["num_frames"] == 17
    for image in (tmp_path / "out").glob("*.png"):
        image.unlink()
    (tmp_path / "out" / "generation.json").unlink()
    assert main([*call, "--num-frames", "17"]) == 2
    assert "already holds 000-a-red-rocket.mp4, 001-the-sun.mp4" in capsys.readouterr().err
    assert main([*call, "--num-frames", "16", "--overwrite"]) == 2
    assert "--num-frames is 16, but WanPipeline draws 1 more than a multiple of 4" in capsys.readouterr().err
    assert main(["generate", "x", "--base", "emoji", "--num-frames", "5", "--output", str(tmp_path / "no")]) == 2
    assert "draws pictures, no clips of 5 frames" in capsys.readouterr().err
