"""Kandinsky 3."""

from fera.models import layouts
from fera.models.registry import Denoiser, add

add("Kandinsky3UNet", Denoiser("sample", layouts.own_channels, pipelines=("Kandinsky3Pipeline",)))
