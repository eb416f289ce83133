"""Clips: what a look tells, which frames are taken, what is refused."""

import json

import av
import numpy as np
import pytest
from clip_cases import clip_folder, frame, write_folder, write_gif, write_video
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fera.cli.main import main
from fera.config import DataConfig
from fera.data.checking import check_images
from fera.data.clips.clip import Clip, Part, at_rate
from fera.data.clips.fitting import clip_settings, fit_clips
from fera.data.clips.reading import frames_of, look_at, preview
from fera.data.sources import find, scan
from fera.errors import FeraError
from fera.models.video import Video

WRITERS = {
    "a.mp4": write_video,
    "a.mov": write_video,
    "a.webm": write_video,
    "a.mkv": write_video,
    "a.avi": write_video,
    "a.gif": write_gif,
    "a.webp": write_gif,
    "a": write_folder,
}


@pytest.fixture(params=WRITERS)
def path(request, tmp_path):
    return WRITERS[request.param](tmp_path / request.param)


def number_of(image):
    """Which frame this is, by its brightness beside the bar."""
    pixels = np.asarray(image).astype(float)
    return float(np.median(pixels[..., 2]) / 6)


def taken(path, part):
    clip, _ = look_at(path)
    return list(frames_of(path, clip, part))


def test_a_look_counts_frames(path):
    clip, digest = look_at(path)
    assert clip.frames == 20 and clip.size == (48, 32) and len(digest) == 64
    if path.is_dir():
        assert clip.frame_rate is None and clip.seconds is None
    else:
        assert clip.frame_rate == pytest.approx(16, rel=0.05) and clip.seconds == pytest.approx(1.25, rel=0.05)


def test_frames_come_as_they_are(path):
    images = taken(path, Part(2, 9, 16.0))
    assert [round(number_of(image)) for image in images] == list(range(2, 11))
    for number, image in enumerate(images, start=2):
        assert image.mode == "RGB" and image.size == (48, 32)
        assert np.abs(np.asarray(image).astype(int) - np.asarray(frame(number)).astype(int)).mean() < 12


def test_frames_of_a_folder_are_exact_and_in_the_order_of_their_numbers(tmp_path):
    images = taken(write_folder(tmp_path / "walk.v2"), Part(0, 20, 16.0))
    assert all(np.array_equal(image, frame(number)) for number, image in enumerate(images))


def test_a_still_picture_is_no_clip(tmp_path):
    frame(0).save(tmp_path / "a.png")
    frame(0).save(tmp_path / "a.gif")
    assert look_at(tmp_path / "a.png") is None and look_at(tmp_path / "a.gif") is None
    assert preview(tmp_path / "a.gif", 4) == []


@pytest.mark.parametrize(("rate", "wanted"), [(16, [0, 2, 4, 6, 8]), (8, [0, 4, 8, 12, 16]), (20, [0, 1, 3, 4, 6])])
def test_a_faster_clip_is_brought_to_the_rate(tmp_path, rate, wanted):
    """At a time k / rate there is to be seen the frame that was shown last."""
    path = write_video(tmp_path / "a.mp4", rate=32, frames=40)
    assert [round(number_of(image)) for image in taken(path, Part(0, 5, rate))] == wanted


@given(st.lists(st.integers(1, 400), min_size=1, max_size=40), st.floats(0.5, 100))
def test_ticks_show_the_frame_shown_last(gaps, rate):
    times = np.concatenate([[0], np.cumsum(gaps)]) / 1000
    shown = [picture() for picture in at_rate(((t, lambda i=i: i) for i, t in enumerate(times)), rate)]
    clip = Clip(len(times), (8, 8), times[-1], (len(times) - 1) / times[-1])
    assert len(shown) == int(times[-1] * rate + 1e-6) + 1
    assert shown == [int((times * rate <= tick + 1e-6).sum()) - 1 for tick in range(len(shown))]
    if clip.frame_rate >= rate and not clip.takes_every_frame(rate):
        assert clip.frames_at(rate) == len(shown)


def test_nearly_equal_rates_are_equal(tmp_path):
    path = write_video(tmp_path / "a.mp4", rate=24000 / 1001, frames=40)
    clip, _ = look_at(path)
    assert clip.frame_rate == pytest.approx(23.976, abs=1e-3) and clip.frames_at(24) == 40
    assert [round(number_of(image)) for image in frames_of(path, clip, Part(0, 40, 24))] == list(range(40))


@pytest.mark.parametrize(("matrix", "turned"), [((0, 1, -1, 0), -90), ((0, -1, 1, 0), 90), ((-1, 0, 0, -1), 180)])
def test_a_phones_video_is_upright(tmp_path, matrix, turned):
    """The track's matrix says how to turn it: (a, b, c, d) of ISO/IEC 14496-12, 16.16 fixed point."""
    path = write_video(tmp_path / "a.mp4", frames=3)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version 0: the matrix is the 41st byte behind the flags
    fixed = [matrix[0], matrix[1], 0, matrix[2], matrix[3], 0]
    for number, value in enumerate(fixed):
        content[at + 4 * number : at + 4 * number + 4] = (value << 16).to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    upright = frame(1).rotate(turned, expand=True)
    image = taken(path, Part(0, 2, 16.0))[1]
    assert image.size == upright.size == look_at(path)[0].size
    assert np.abs(np.asarray(image).astype(int) - np.asarray(upright).astype(int)).mean() < 12


@pytest.mark.parametrize(("lines", "space"), [(64, 5), (64, 1), (64, 2), (640, 2)])
def test_colours_follow_the_videos_note_or_its_size(tmp_path, lines, space):
    """Where nothing is said (2), small videos are of BT.601 (5) and large ones of BT.709 (1), as players take them."""
    path, colour = tmp_path / "a.mp4", (40, 200, 90)
    written = 1 if space == 2 and lines > 576 else 5 if space == 2 else space
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, lines, "yuv420p"
        stream.options = {"crf": "1"}
        if space != 2:
            stream.codec_context.colorspace = space
        image = av.VideoFrame.from_image(Image.new("RGB", (64, lines), colour))
        for _ in range(2):
            picture = image.reformat(format="yuv420p", dst_colorspace=written)
            picture.colorspace = space
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    seen = np.asarray(taken(path, Part(0, 1, 16.0))[0]).mean(axis=(0, 1))
    assert np.abs(seen - colour).max() < 4


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def broken_faststart(folder):
    cut(write_video(folder / "a.mp4", movflags="faststart"), 0.7)


def broken_webm(folder):
    cut(write_video(folder / "a.webm"), 0.7)


def broken_avi(folder):
    cut(write_video(folder / "a.avi"), 0.9)


def without_table(folder):
    cut(write_video(folder / "a.mp4"), 0.6)


def empty(folder):
    (folder / "a.mp4").write_bytes(b"")


def text(folder):
    (folder / "a.mp4").write_text("no video")


def playlist(folder):
    """FFmpeg would open what it names, whatever the file is called."""
    write_video(folder / "secret.mkv")
    (folder / "a.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{folder}/secret.mkv\n#EXT-X-ENDLIST\n"
    )


def sound_alone(folder):
    with av.open(str(folder / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 8000
        for packet in [*stream.encode(sound), *stream.encode()]:
            container.mux(packet)


def broken_gif(folder):
    cut(write_gif(folder / "a.gif"), 0.6)


def odd_folder(folder):
    write_folder(folder / "a", 4)
    frame(4, 16, 16).save(folder / "a" / "frame3.png")
    frame(4, 16, 16).save(folder / "a" / "frame4.png")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (broken_faststart, "has a broken end: it breaks off after .* frames of 20"),
        (broken_webm, "has a broken end: it breaks off after .* frames of 20"),
        (broken_avi, "has a broken end: it breaks off after .* frames"),
        (without_table, "is damaged or no video that can be read"),
        (empty, r"is empty \(0 bytes\)"),
        (text, "is damaged or no video that can be read"),
        (playlist, "is damaged or no video that can be read"),
        (sound_alone, "has no video in it"),
        (broken_gif, "is damaged"),
        (odd_folder, "has frames of different sizes: frame1.png 48 x 32, frame4.png 16 x 16"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_with_a_clip_is_said(tmp_path, capsys, make, words):
    make(tmp_path)
    found = scan(tmp_path, DataConfig(train_data_dir=tmp_path, num_frames=[5]))
    bad = next(example for example in found.examples if example.image.stem == "a")
    with pytest.raises(FeraError, match=rf"(?s)1 of 1 pictures and clips cannot be used: \S*a\S* {words}"):
        check_images([bad], skip_bad=False, clips=True)
    assert main(["data", "check", str(tmp_path), "--data.num_frames", "5", "--data.instance_prompt", "x"]) == 2
    assert "cannot be used" in " ".join(capsys.readouterr().out.split())


def test_a_frame_missing_in_the_middle_of_decoding_is_an_error(tmp_path):
    path = write_folder(tmp_path / "a", 6)
    clip, _ = look_at(path)
    (path / "frame4.png").unlink()
    with pytest.raises(ValueError, match="breaks off: it has 5 frames that can be decoded, of 6"):
        list(frames_of(path, clip, Part(0, 6, 16.0)))


# Fitting


def checked(folder, **settings):
    config = DataConfig(train_data_dir=folder, **settings)
    return check_images(scan(folder, config).examples, skip_bad=False, clips=True)[0], config


def test_a_clip_takes_the_largest_count_it_has_frames_for(tmp_path):
    for name, frames in (("a", 4), ("b", 5), ("c", 8), ("d", 9), ("e", 30)):
        write_folder(tmp_path / name, frames)
    frame(0).save(tmp_path / "f.png")
    examples, _ = checked(tmp_path, num_frames=[9, 5])
    with pytest.raises(FeraError, match=r"1 of 6 clips do not fit: \S+/a has 4 frames at 16 a second, fewer than 5"):
        fit_clips(examples, [5, 9], 16.0, skip_bad=False)
    fitted, bad = fit_clips(examples, [5, 9], 16.0, skip_bad=True)
    assert [example.frames for example in fitted] == [5, 5, 9, 9, 1] and len(bad) == 1
    with pytest.raises(FeraError, match="none of 5 clips fits"):
        fit_clips(examples[:5], [33], 16.0, skip_bad=True)


def test_a_slower_clip_is_refused_and_says_what_to_set(tmp_path):
    write_video(tmp_path / "a.mp4", rate=12)
    examples, _ = checked(tmp_path, num_frames=5)
    with pytest.raises(
        FeraError, match="has 12 frames a second, fewer than the 16 .*set data.frame_rate to 12 or less"
    ):
        fit_clips(examples, [5], 16.0, skip_bad=False)
    assert fit_clips(examples, [5], 12.0, skip_bad=False)[0][0].part == Part(0, 5, 12.0)


def test_counts_must_suit_the_base():
    config = DataConfig(train_data_dir="x", num_frames=[5, 16])
    with pytest.raises(FeraError, match="num_frames is 16, but this base needs 1 more than a multiple of 4: 13 or 17"):
        clip_settings(config, Video(4, 16.0), "WanPipeline")
    with pytest.raises(FeraError, match="num_frames is set, but FluxPipeline draws pictures"):
        clip_settings(config, None, "FluxPipeline")
    config = DataConfig(train_data_dir="x", num_frames=[17, 5], frame_rate=12)
    assert clip_settings(config, Video(4, 16.0), "WanPipeline") == ([5, 17], 12)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_frames": [0]}, "different numbers from 1 on"),
        ({"num_frames": [5, 5]}, "different numbers from 1 on"),
        ({"frame_rate": 16}, "data.frame_rate is set, but data.num_frames is not"),
        ({"num_frames": 5, "mask_path": "x"}, "masks are for pictures"),
    ],
)
def test_settings_that_cannot_work(settings, words):
    with pytest.raises(ValueError, match=words):
        DataConfig(train_data_dir="x", **settings)


# Layouts


def test_layouts_with_clips(tmp_path):
    folder = clip_folder(tmp_path / "clips")
    config = DataConfig(train_data_dir=folder, num_frames=5)
    found = find(folder, config)
    assert [example.name for example in found.examples] == ["a.mp4", "b.webm", "c.gif", "d", "e.png"]
    assert found.examples[3].caption == "a yellow cat" and found.notes == []
    inner = tmp_path / "repeats" / "10_a rocket"
    inner.parent.mkdir()
    folder.rename(inner)
    found = find(inner.parent, config)
    assert found.layout == "repeats" and {example.repeats for example in found.examples} == {10}
    assert len(found.examples) == 5 and found.notes == []
    rows = [{"file_name": f"10_a rocket/{name}", "text": name} for name in ("a.mp4", "d", "e.png")]
    (inner.parent / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = scan(inner.parent, config)
    assert found.layout == "imagefolder"
    captions = {example.name: example.caption for example in found.examples}
    assert captions == {f"10_a rocket/{name}": name for name in ("a.mp4", "d", "e.png")} | {
        "10_a rocket/b.webm": "",
        "10_a rocket/c.gif": "",
    }


def test_videos_are_left_alone_and_named_where_pictures_alone_are_trained_on(tmp_path, capsys):
    folder = clip_folder(tmp_path / "clips")
    found = find(folder, DataConfig(train_data_dir=folder))
    assert [example.name for example in found.examples] == ["c.gif", "e.png"]
    assert any("2 videos are left alone: a.mp4, b.webm; set data.num_frames" in note for note in found.notes)
    for name in ("c.gif", "e.png"):
        (folder / name).unlink()
    with pytest.raises(FeraError, match="no pictures in .*set data.num_frames to train on clips"):
        scan(folder, DataConfig(train_data_dir=folder))


def test_a_check_tells_of_each_clip(tmp_path, capsys):
    folder = clip_folder(tmp_path / "clips")
    flags = ["--data.num_frames", "5", "17", "--data.frame_rate", "16", "--data.resolution", "32"]
    assert main(["data", "check", str(folder), "--json", *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    clips = {picture["name"]: picture["clip"] for picture in report["listing"]}
    assert clips["a.mp4"] == {
        "frames": 20,
        "frame_rate": 16,
        "seconds": 1.25,
        "trained_frames": 17,
        "trained_rate": 16,
    }
    assert clips["d"]["seconds"] is None and clips["e.png"] is None
    assert report["buckets"] == [
        "32 x 32: 1 picture, 1 batch, the last of 1",
        "32 x 32, 17 frames: 4 clips, 1 batch, the last of 4",
    ]
    assert main(["data", "check", str(folder), "--list", *flags]) == 0
    out = capsys.readouterr().out
    assert "b.webm: 48 x 32, 40 frames, 31.99 a second, 1.25 s" in out
    assert "clips                4, 20 to 40 frames, 16 to 32 a second, 1.2 to 1.25 s" in out
