"""HunyuanVideo."""

import torch
from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video_image2video
from models import hunyuan_video
from pytest import MonkeyPatch
from tiny_texts import make_tokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from trained_cases.case import Case

# What begins and ends the name of who speaks, and what ends what is said.
_SPECIAL = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def make_pipeline() -> HunyuanVideoPipeline:
    """Told a guidance, as its releases."""
    parts = hunyuan_video.make_pipeline().components
    return HunyuanVideoPipeline(**parts | {"transformer": hunyuan_video.make_transformer(guidance_embeds=True)})


def make_image_to_video() -> HunyuanVideoImageToVideoPipeline:
    """The given frame is the latent's first one, and the text encoder sees it as 4 tokens."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*_SPECIAL, "<image>"]})
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2
    )
    vision = CLIPVisionConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=4, intermediate_size=8, patch_size=2
    )
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(3)
    parts = hunyuan_video.make_pipeline().components
    parts |= {
        "transformer": hunyuan_video.make_transformer(guidance_embeds=True, image_condition_type="token_replace"),
        "text_encoder": LlavaForConditionalGeneration(config).eval(),
        "tokenizer": tokenizer,
        "image_processor": CLIPImageProcessor(crop_size=4, size=4),
    }
    return HunyuanVideoImageToVideoPipeline(**parts)


def smaller(monkeypatch: MonkeyPatch) -> None:
    """Fewer words around a caption, which has its place where they end, and a picture of 4 tokens."""
    template = pipeline_hunyuan_video_image2video.DEFAULT_PROMPT_TEMPLATE
    words = "{0}s{1}\n\n<image>\n{2}{0}u{1}\n\n{{}}{2}{0}a{1}\n\n".format(*_SPECIAL)
    monkeypatch.setitem(template, "template", words)
    for name, value in {"crop_start": 10, "image_emb_start": 4, "image_emb_end": 8, "image_emb_len": 4}.items():
        monkeypatch.setitem(template, name, value)


CASES = [
    Case("hunyuan-video", make_pipeline, height=32, width=48, frames=9),
    Case("hunyuan-video-i2v", make_image_to_video, height=32, width=48, frames=9, given=1, patch=smaller),
]
