#!/usr/bin/env bash
# diffusers 0.42.1 (torch 2.13.0, transformers 5.23.0): ChromaPipeline's mask does not shut captions' padding out.
#
# Expected: encode_prompt returns a mask that is 1 for tokens of the caption and 0 for padding, and the transformer does
# not see what the mask is 0 for.
#
# What happens: the mask is cast to the dtype of the embeddings, and PyTorch's attention adds a mask of floats to the
# scores. 1 for a caption's token and 0 for padding is a slight preference and shuts nothing out: the picture changes
# with the embeddings of padding. The same mask given to the pipeline as booleans does what it says, so a pipeline with
# prompt and one with prompt_embeds and a boolean mask draw two pictures. Reported in diffusers' issue 13619.
#
# Output:
#   mask of encode_prompt: torch.float32 [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
#   embeddings of encode_prompt against the prompt itself: latents differ by 0.0000
#   other padding, the mask as encode_prompt returns it: latents differ by 0.0451
#   other padding, the same mask as booleans: latents differ by 0.0000
#   the one mask against the other: latents differ by 0.0408

set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q diffusers==0.42.1 peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 \
    safetensors==0.8.0 numpy==2.4.6 pillow==13.0.0
cd "$folder"
export TRANSFORMERS_VERBOSITY=error
"$folder/venv/bin/python" - <<'PY'
import warnings

import torch
from diffusers import AutoencoderKL, ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

warnings.filterwarnings("ignore")
logging.set_verbosity_error()

torch.manual_seed(0)
words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "cat": 4}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
pipe = ChromaPipeline(
    scheduler=FlowMatchEulerDiscreteScheduler(),
    vae=AutoencoderKL(block_out_channels=(16,), norm_num_groups=4, shift_factor=0.0),
    text_encoder=T5EncoderModel(T5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)).eval(),
    tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"),
    transformer=ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 4, 8), approximator_num_channels=8, approximator_hidden_dim=32,
        approximator_layers=1,
    ).eval(),
)
pipe.set_progress_bar_config(disable=True)
with torch.no_grad():
    text, _, mask, *_ = pipe.encode_prompt("a cat", do_classifier_free_guidance=False, max_sequence_length=16)
print("mask of encode_prompt:", mask.dtype, [int(value) for value in mask[0]])
other = torch.where(mask[..., None] > 0, text, torch.randn_like(text))  # another padding


def draw(**prompt):
    return pipe(
        **prompt, guidance_scale=1.0, num_inference_steps=2, height=16, width=16, output_type="latent",
        max_sequence_length=16, generator=torch.manual_seed(1),
    ).images


def differ(one, two):
    return float((one - two).abs().max())


as_given = draw(prompt_embeds=text, prompt_attention_mask=mask)
as_bool = draw(prompt_embeds=text, prompt_attention_mask=mask.bool())
floats = differ(as_given, draw(prompt_embeds=other, prompt_attention_mask=mask))
bools = differ(as_bool, draw(prompt_embeds=other, prompt_attention_mask=mask.bool()))
same = differ(as_given, draw(prompt="a cat"))
both = differ(as_given, as_bool)
print(f"embeddings of encode_prompt against the prompt itself: latents differ by {same:.4f}")
print(f"other padding, the mask as encode_prompt returns it: latents differ by {floats:.4f}")
print(f"other padding, the same mask as booleans: latents differ by {bools:.4f}")
print(f"the one mask against the other: latents differ by {both:.4f}")

assert mask.dtype == torch.float32 and 0 < int((mask == 0).sum()) and same < 1e-5, "not as the header says"
assert floats > 1e-3 and bools < 1e-5 and both > 1e-3, "not as the header says"
PY
