"""Pictures of sounds."""

import math

import numpy as np
from PIL import Image

from fera.data.sounds.sound import Waveform

# Width and height of a spectrogram in pixels.
_SIZE = (512, 256)
# Mel bands, lowest frequency, decibels below the loudest that are black.
_BANDS = 128
_LOWEST = 20.0
_RANGE = 80.0
# Milliseconds of sound in one spectrum.
_WINDOW = 46
_COLOURS = "magma"


def spectrogram(sound: Waveform) -> Image.Image:
    """A picture of a sound: time to the right, frequency upward on the mel scale, louder brighter.

    The channels are averaged in power; brightness is in decibels below the loudest, down to -80.

    Args:
        sound: at least one sample.

    Returns:
        RGB, 512 x 256 pixels.
    """
    from matplotlib import colormaps
    from transformers.audio_utils import mel_filter_bank, window_function
    from transformers.audio_utils import spectrogram as spectra

    window = 2 ** max(4, round(math.log2(sound.rate * _WINDOW / 1000)))
    samples = sound.samples.astype(np.float64)
    hop = max(1, samples.shape[1] // _SIZE[0])
    missing = max(0, window - samples.shape[1])
    lowest = min(_LOWEST, sound.rate / 16)
    filters = mel_filter_bank(window // 2 + 1, min(_BANDS, window // 4), lowest, sound.rate / 2, sound.rate)
    padded = np.pad(samples, ((0, 0), (0, missing)))
    shape = window_function(window)
    power = np.sum([spectra(one, shape, window, hop, power=2.0, mel_filters=filters) for one in padded], axis=0)
    decibels = 10 * np.log10(np.maximum(power, 1e-12))
    shown = np.clip((decibels - decibels.max()) / _RANGE + 1, 0, 1) if power.max() > 1e-10 else np.zeros_like(power)
    picture = Image.fromarray((shown[::-1] * 255).astype(np.uint8)).resize(_SIZE, Image.Resampling.BILINEAR)
    colours = (colormaps[_COLOURS](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    return Image.fromarray(colours[np.asarray(picture)])
