"""Kandinsky 5."""

from models import kandinsky5

from trained_cases.case import Case

CASES = [
    Case("kandinsky5", kandinsky5.make_pipeline, height=64, width=96),
    Case("kandinsky5-video", kandinsky5.make_video_pipeline, height=64, width=96, frames=9),
]
