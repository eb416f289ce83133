"""ConsisID: frames before the channels, those of the given face behind the latent's."""

import torch
from diffusers import ConsisIDTransformer3DModel, DDIMScheduler

# By its module: diffusers hides it where OpenCV is missing, which draws points of a face that these calls do not give.
from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline
from torch import nn

from models import cogvideox
from models.case import Case, frames_as_channels
from models.inputs import embeddings, picture

CALL = cogvideox.CALL | {
    "image": picture(0, 64, 96),
    "id_vit_hidden": [embeddings(1, 1, 2, 2)],
    "id_cond": embeddings(2, 1, 2),
}


def make_pipeline() -> ConsisIDPipeline:
    """A face, as a picture and as what recognizes it sees, to video."""
    torch.manual_seed(0)
    transformer = ConsisIDTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=64,
        num_layers=1,
        sample_width=12,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=True,
        cross_attn_interval=1,
        is_train_face=True,
        cross_attn_dim_head=1,
        cross_attn_num_heads=1,
        LFE_id_dim=2,
        LFE_vit_dim=2,
        LFE_depth=5,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=1,
        LFE_num_querie=1,
        LFE_output_dim=21,
        LFE_ff_mult=1,
        LFE_num_scale=1,
    )
    nn.init.normal_(transformer.proj_out.weight, std=0.1)
    parts = cogvideox.components() | {"transformer": transformer.eval(), "scheduler": DDIMScheduler()}
    return ConsisIDPipeline(**parts)


CASES = [
    Case(
        "consisid",
        make_pipeline,
        CALL,
        {"image": picture(1, 64, 96), "id_cond": embeddings(3, 1, 2)},
        frames_as_channels,
        copies=2,
    )
]
