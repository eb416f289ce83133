"""Layouts of latents: against the functions that pipelines pack with, wherever references lie, and bad calls."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import ChromaPipeline, Flux2Pipeline, FluxPipeline, Krea2Pipeline, QwenImagePipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import inject_adapter_in_model
from tiny import make_unet
from torch import Tensor, nn

from fera import FeraConfig
from fera.errors import FeraError
from fera.models import layouts, places
from models import chroma, flux, flux2, hidream, krea2, qwen_image, z_image

PACK = {
    "flux": lambda latent: FluxPipeline._pack_latents(latent, *latent.shape),
    "chroma": lambda latent: ChromaPipeline._pack_latents(latent, *latent.shape),
    "flux2": lambda latent: Flux2Pipeline._pack_latents(Flux2Pipeline._patchify_latents(latent)),
    "qwen-image": lambda latent: QwenImagePipeline._pack_latents(latent, *latent.shape),
    "krea2": lambda latent: Krea2Pipeline._pack_latents(SimpleNamespace(patch_size=2), latent, *latent.shape),
}


class Denoiser(nn.Module):
    """One that layouts ask for its configuration alone."""

    def __init__(self, **config: object) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)


def rows(image: int, height: int, width: int) -> Tensor:
    """Position ids of one picture, (h w, 3)."""
    return torch.cartesian_prod(torch.tensor([image]), torch.arange(height), torch.arange(width))


def picture(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """A latent of 4 channels with its sides in tokens, and its tokens."""
    latent = torch.randn(batch, 4, 2 * height, 2 * width)
    return latent, PACK["flux"](latent)


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK)
@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), channels=st.integers(1, 5), height=st.integers(1, 9), width=st.integers(1, 9))
def test_unpack_undoes_what_pipelines_pack(pack, batch, channels, height, width):
    latent = torch.randn(batch, channels, 2 * height, 2 * width)
    assert torch.equal(layouts.unpack(pack(latent), height, width), latent)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    before=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=2),
    after=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=2),
    batched=st.booleans(),
)
def test_references_may_lie_before_or_after_the_picture(height, width, before, after, batched):
    latent, tokens = picture(2, height, width)
    sizes = [*before, (height, width), *after]
    images = [*range(1, len(before) + 1), 0, *range(11, 11 + len(after))]
    ids = torch.cat([rows(image, *size) for image, size in zip(images, sizes, strict=True)])
    references = [[torch.randn(2, h * w, 16) for h, w in group] for group in (before, after)]
    seen = layouts.packed_by_ids(
        Denoiser(in_channels=16, out_channels=None),
        torch.cat([*references[0], tokens, *references[1]], dim=1),
        {"img_ids": ids.float().expand(2, -1, -1) if batched else ids.float()},
    )
    assert torch.equal(seen, latent)


def test_ids_may_begin_with_those_of_the_text():
    latent, tokens = picture(1, 2, 3)
    ids = torch.cat([torch.zeros(5, 3), rows(0, 2, 3)])
    denoiser = Denoiser(in_channels=16)
    assert torch.equal(layouts.packed_by_ids(denoiser, tokens, {"position_ids": ids}, ids="position_ids"), latent)


def test_appended_channels_are_left_out():
    latent, tokens = picture(1, 2, 3)
    arguments = {"img_ids": rows(0, 2, 3)}
    filled = torch.cat([tokens, torch.randn(1, 6, 32)], dim=2)
    denoiser = Denoiser(in_channels=48, out_channels=16)
    assert torch.equal(layouts.packed_by_ids(denoiser, filled, arguments), latent)


# Channels in, out, and the latent's own; the UNet's other settings as their families have them.
CHANNELS = {
    "Stable Diffusion": (4, 4, 4, {}),
    "inpainting": (9, 4, 4, {}),
    "instructions": (8, 4, 4, {}),
    "depth": (5, 4, 4, {}),
    "upscaling by four": (7, 4, 4, {}),
    "upscaling by two": (8, 5, 4, {"time_cond_proj_dim": 8}),
    "learned variance": (4, 8, 4, {}),
    "learned variance, and a mask": (5, 8, 4, {}),
    "Kandinsky": (4, 8, 4, {"addition_embed_type": "image", "encoder_hid_dim": 32}),
    "Kandinsky 2.2's inpainting": (9, 8, 4, {"addition_embed_type": "image", "encoder_hid_dim": 32}),
    "Kandinsky 2.1's inpainting": (9, 8, 4, {"addition_embed_type": "text_image", "encoder_hid_dim": 32}),
    "DeepFloyd": (3, 6, 3, {"addition_embed_type": "text", "encoder_hid_dim": 32}),
    "DeepFloyd's upscaling": (
        *(6, 6, 3),
        {"addition_embed_type": "text", "encoder_hid_dim": 32, "class_embed_type": "timestep"},
    ),
    "a caption that is pooled": (4, 4, 4, {"addition_embed_type": "text"}),
    "sound as a picture": (8, 8, 8, {}),
}


@pytest.mark.parametrize(("into", "out", "own", "settings"), CHANNELS.values(), ids=CHANNELS)
def test_conditions_and_variances_are_no_channels_of_the_latent(into, out, own, settings):
    if settings.get("addition_embed_type") == "text":
        settings = settings | {"addition_embed_type_num_heads": 2}
    unet = make_unet(in_channels=into, out_channels=out, **settings)
    latent = torch.randn(2, into, 4, 4)
    assert torch.equal(layouts.own_channels(unet, latent, {}), latent[:, :own])


def test_a_hint_that_the_denoiser_appends_is_not_in_the_call():
    """Kandinsky's control net: 8 channels go in, of which the call has 4."""
    unet = make_unet(in_channels=8, out_channels=8, addition_embed_type="image_hint", encoder_hid_dim=32)
    latent = torch.randn(2, 4, 4, 4)
    assert torch.equal(layouts.own_channels(unet, latent, {}), latent)


def test_ids_are_read_once_and_let_go(monkeypatch):
    reads = []
    read = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: reads.append(tensor) or read(tensor))
    ids = rows(0, 2, 3)
    before = len(places._PLACES)
    for _ in range(3):
        layouts.packed_by_ids(Denoiser(in_channels=16, out_channels=None), picture(1, 2, 3)[1], {"img_ids": ids})
    assert len(reads) == 1
    del ids
    assert len(places._PLACES) == before


GRID = rows(0, 4, 6).double()
ORDERS = {
    "scaled": (GRID * torch.tensor([1, 0.5, 0.5]), True),
    "scaled by thirds": ((GRID * torch.tensor([1, 4 / 3, 2 / 3])).bfloat16(), True),
    "centred": (GRID - torch.tensor([0, 1.5, 2.5]), True),
    "moved": (GRID + torch.tensor([0, 10, 20]), True),
    "tiled": (torch.cat([GRID[GRID[:, 2] < 3], GRID[GRID[:, 2] >= 3]]), False),
    "tiles of one place": (torch.cat([rows(0, 4, 3)] * 2), False),
    "column by column": (GRID.view(4, 6, 3).transpose(0, 1).flatten(0, 1), False),
    "upside down": (GRID.flip(0), False),
    "shuffled": (GRID[torch.randperm(24, generator=torch.Generator().manual_seed(0))], False),
    "of another image": (GRID + torch.tensor([1, 0, 0]), False),
    "all zero": (torch.zeros(24, 3), False),
    "two pictures apart": (torch.cat([rows(0, 2, 6), rows(1, 1, 6), rows(0, 1, 6)]), False),
    "a condition in the place of the picture": (torch.cat([rows(0, 2, 6)] * 2), False),
    "a condition to the right": (torch.cat([rows(0, 4, 3), rows(0, 4, 3) + torch.tensor([0, 0, 3])]), False),
    "a condition further down": (torch.cat([rows(0, 2, 6), rows(0, 2, 6) + torch.tensor([0, 3, 0])]), False),
    "too few": (GRID[:12], False),
    "too many": (torch.cat([GRID, rows(1, 1, 6)]), False),
}


@pytest.mark.parametrize(("ids", "is_picture"), ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("batched", [False, True])
def test_ids_are_held_against_the_number_and_order_of_tokens(ids, is_picture, batched):
    latent, tokens = picture(2, 4, 6)
    call = Denoiser(in_channels=16), tokens, {"img_ids": ids.expand(2, -1, -1) if batched else ids}
    if is_picture:
        assert torch.equal(layouts.packed_by_ids(*call), latent)
    else:
        with pytest.raises(FeraError, match="'img_ids'"):
            layouts.packed_by_ids(*call)


@pytest.mark.parametrize("inference", [False, True])
def test_ids_that_are_rewritten_in_place_are_read_anew(inference):
    (wide, wide_tokens), (high, high_tokens) = picture(1, 2, 3), picture(1, 3, 2)
    with torch.inference_mode(inference):
        ids = rows(0, 2, 3) + 0
        assert torch.equal(layouts.packed_by_ids(Denoiser(in_channels=16), wide_tokens, {"img_ids": ids}), wide)
        ids.copy_(rows(0, 3, 2))
        assert torch.equal(layouts.packed_by_ids(Denoiser(in_channels=16), high_tokens, {"img_ids": ids}), high)


def test_ids_of_text_and_picture_serve_latents_of_several_lengths():
    """The same ids, where text counts for more or less of them."""
    ids = torch.cat([rows(0, 1, 3), rows(1, 1, 3), rows(0, 2, 3)])
    for height, width, tokens in ((2, 3, 6), (2, 3, 9)):
        latent, picture_tokens = picture(1, height, width)
        filled = torch.cat([torch.randn(1, tokens - 6, 16), picture_tokens], dim=1)
        seen = layouts.packed_by_ids(Denoiser(in_channels=16), filled, {"position_ids": ids}, ids="position_ids")
        assert torch.equal(seen, latent)


@pytest.mark.parametrize("shapes", [[(1, 2, 3)], [[(1, 2, 3)]], [[(1, 2, 3), (1, 4, 4)]]], ids=["flat", "one", "two"])
def test_the_first_of_the_shapes_is_the_picture(shapes):
    latent, tokens = picture(2, 2, 3)
    tokens = torch.cat([tokens, torch.randn(2, 16, 16)], dim=1) if shapes == [[(1, 2, 3), (1, 4, 4)]] else tokens
    arguments = {"img_shapes": shapes * 2}
    assert torch.equal(layouts.packed_by_shapes(Denoiser(use_layer3d_rope=False), tokens, arguments), latent)


def test_layers_count_as_channels():
    (first, first_tokens), (second, second_tokens) = picture(2, 2, 3), picture(2, 2, 3)
    tokens = torch.cat([first_tokens, second_tokens, torch.randn(2, 16, 16)], dim=1)
    arguments = {"img_shapes": [[(1, 2, 3), (1, 2, 3), (1, 4, 4)]] * 2}
    seen = layouts.packed_by_shapes(Denoiser(use_layer3d_rope=True), tokens, arguments)
    assert torch.equal(seen, torch.cat([first, second], dim=1))


def test_the_picture_is_the_last_of_a_nested_list():
    latent = torch.randn(2, 4, 6, 8)
    pictures = list(latent.unsqueeze(2))
    nested = [[torch.randn(4, 1, 2, 2), entry] for entry in pictures]
    assert torch.equal(layouts.listed(Denoiser(), pictures, {}), latent)
    assert torch.equal(layouts.listed(Denoiser(), nested, {}), latent)


BAD_CALLS = {
    "flux without ids": (flux.make_transformer, {}, "without 'img_ids'"),
    "chroma without ids": (chroma.make_transformer, {}, "without 'img_ids'"),
    "flux2 without ids": (lambda: flux2.make_transformer(False), {}, "without 'img_ids'"),
    "krea2 without ids": (krea2.make_transformer, {}, "without 'position_ids'"),
    "qwen without shapes": (qwen_image.make_transformer, {}, "without 'img_shapes'"),
    "flux with other ids": (
        flux.make_transformer,
        {"img_ids": rows(0, 3, 3)},
        "'img_ids' says where 9 tokens lie, but the latent has 6",
    ),
    "qwen with other shapes": (
        qwen_image.make_transformer,
        {"img_shapes": [[(1, 3, 3)]]},
        "'img_shapes' describes a picture of 9 tokens, but its latent has only 6",
    ),
    "hidream with tokens": (hidream.make_transformer, {}, r"shape \(1, 6, 16\).*\(B, C, H, W\)"),
}


@pytest.mark.parametrize(("make", "arguments", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_call_that_does_not_say_where_tokens_lie_is_refused(make, arguments, message):
    model = inject_adapter_in_model(FeraConfig(r=2), make())
    with pytest.raises(FeraError, match=message):
        model(hidden_states=torch.randn(1, 6, 16), **arguments)


def test_pictures_of_different_sizes_are_refused():
    model = inject_adapter_in_model(FeraConfig(r=2), z_image.make_transformer())
    with pytest.raises(FeraError, match=r"different sizes.*\(4, 1, 4, 6\), \(4, 1, 6, 4\)"):
        model([torch.randn(4, 1, 4, 6), torch.randn(4, 1, 6, 4)], torch.ones(2), [torch.randn(5, 32)] * 2)
