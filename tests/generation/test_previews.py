"""What a picture looks like before it is done: at the last step, as it is when it is done."""

import numpy as np
import pytest
from trained_cases import CASES

from fera.generation import generate_clips
from fera.generation.live import _decoder
from fera.models.families import family_of
from fera.pipelines.recording import record_denoising

# One of each way back from latents, and one whose sigmas say how clean a latent is; the others are slow.
FAST = ("flux", "qwen-image", "flux2", "wan", "omnigen")
# Decoders that normalize over all frames of a clip: one frame alone is not as it is among others.
OF_ALL_FRAMES = ("hunyuan-video", "mochi")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case.name not in FAST))
        for case in CASES
        if not (case.sources or case.given or case.seconds or case.variant)
    ],
)
def test_the_last_preview_is_the_picture(case, monkeypatch):
    case.patch(monkeypatch)
    pipe = case.pipeline()
    pipe.set_progress_bar_config(disable=True)
    decode = _decoder(pipe)
    if decode is None:
        assert family_of(pipe).latents is not None and family_of(pipe).preview is None
        return
    steps = []
    with record_denoising(pipe, steps.append):
        (frames,) = generate_clips(
            pipe,
            ["a red rocket"],
            num_inference_steps=2,
            guidance_scale=1.0,
            height=case.height,
            width=case.width,
            num_frames=1 if case.name in OF_ALL_FRAMES else case.frames or None,
        )
    (preview,) = decode(steps[-1].clean)
    assert preview.size == frames[0].size
    difference = np.abs(np.asarray(preview, dtype=int) - np.asarray(frames[0], dtype=int))
    # Of a few schedulers the last step ends just before the clean latent.
    assert difference.mean() < 0.5 and np.asarray(frames[0]).std() > 2
