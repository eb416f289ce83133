"""Qwen-Image."""

from typing import Any

from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline, QwenImagePipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from models import qwen_image
from models.qwen_image_vae import make_vae
from pytest import MonkeyPatch
from tiny_texts import make_qwen2_vl, make_seeing_processor, make_tokenizer

from fera.models import qwen_image as family
from trained_cases.case import Case


def make_pipeline() -> QwenImagePipeline:
    """Captions differ in length."""
    parts = qwen_image.make_pipeline().components
    return QwenImagePipeline(
        **parts | {"vae": make_vae(), "text_encoder": make_qwen2_vl(), "tokenizer": make_tokenizer()}
    )


def make_edit(pipeline: Any = QwenImageEditPipeline) -> Any:
    """Its text encoder sees pictures."""
    parts = make_pipeline().components
    processor = make_seeing_processor()
    return pipeline(**parts | {"text_encoder": make_qwen2_vl(sees=processor), "processor": processor})


def make_edit_plus() -> QwenImageEditPlusPipeline:
    """And several of them."""
    return make_edit(QwenImageEditPlusPipeline)


def smaller(monkeypatch: MonkeyPatch) -> None:
    """Sources of 64 x 64 pixels, which the pipelines scale to a million."""
    edit, area = pipeline_qwenimage_edit.calculate_dimensions, 64 * 64
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda _, ratio: edit(area, ratio))
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", area)
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", area)
    monkeypatch.setattr(family, "_SOURCE_AREA", area)
    monkeypatch.setattr(family, "_SEEN_AREA", area)


CASES = [
    Case("qwen-image", make_pipeline),
    Case("qwen-image-edit", make_edit, sources=((64, 64),), patch=smaller),
    Case("qwen-image-edit-plus", make_edit_plus, sources=((64, 64), (96, 32)), patch=smaller),
]
