"""Layers whose rows are not samples, and calls that split their batch: each row has its own sample's gate."""

import copy
import inspect

import pytest
import torch
from models import CASES, hidream, z_image
from models.recorded import stacked
from peft import LoHaConfig, inject_adapter_in_model
from rows_cases import by_hand, gate_by_hand
from torch import nn
from tuner_cases import fill

import fera
from fera import FeraConfig, FeraError, register_denoiser
from fera.models import known
from fera.models.rows import unknown


def routed(model, targets, **settings):
    """An adapter on some layers whose every weight counts, and gates that differ between samples."""
    return fill(inject_adapter_in_model(FeraConfig(r=2, target_modules=targets, **settings), model)).eval()


def smooth_and_noisy(seed=0):
    """Two latents of 4 channels whose gates differ."""
    noise = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(seed))
    return torch.stack([noise[0].cumsum(1).cumsum(2) / 8, noise[1]])


def observed(model, layer, call):
    """A layer's inputs and outputs in one call of its model."""
    seen = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        call()
    handle.remove()
    return seen


def z_image_call(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    captions = [torch.randn(length, 32, generator=generator) for length in lengths]
    return list(smooth_and_noisy()[:, :, None]), torch.full((2,), 0.5), captions


# 64 and 32, and 96 and 32: an even number of rows that are not shared evenly; lengths are filled up to 32.
@pytest.mark.parametrize(("lengths", "rows"), [((40, 5), (64, 32)), ((70, 32), (96, 32))])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_z_images_captions_have_their_own_samples_gate(lengths, rows):
    model = routed(z_image.make_transformer(), ["cap_embedder.1", "all_x_embedder.2-1", "to_q"])
    pictures, times, captions = z_image_call(lengths)
    ((x, output),) = observed(model, model.cap_embedder[1], lambda: model(pictures, times, captions))
    gates = gate_by_hand(model, torch.stack(pictures).squeeze(2))
    assert (gates[0] - gates[1]).abs().max() > 0.02
    own = torch.cat([gates[:1].expand(rows[0], -1), gates[1:].expand(rows[1], -1)])
    torch.testing.assert_close(output, by_hand(model.cap_embedder[1], x, own), rtol=1e-4, atol=1e-5)


def test_z_images_references_have_their_own_samples_gate():
    """Pictures, captions and what the vision encoder saw of several references, of which it did not see all."""
    model = routed(
        z_image.make_transformer(siglip_feat_dim=32), ["cap_embedder.1", "siglip_embedder.1", "all_x_embedder.2-1"]
    )
    pictures = smooth_and_noisy()[:, :, None]
    references = [
        [torch.randn(4, 1, 8, 40), torch.randn(4, 1, 4, 4), pictures[0]],
        [torch.randn(4, 1, 8, 8)] * 2 + [pictures[1]],
    ]
    call = {
        "x": references,
        "t": torch.full((2,), 0.5),
        "cap_feats": [[torch.randn(n, 32) for n in (40, 5, 7)], [torch.randn(5, 32)] * 3],
        "siglip_feats": [[torch.randn(7, 9, 32), None, None], [torch.randn(2, 3, 32), torch.randn(8, 8, 32), None]],
        "image_noise_mask": [[0, 0, 1], [0, 0, 1]],
    }
    one = [{name: value[n : n + 1] for name, value in call.items()} for n in range(2)]
    for layer in (model.cap_embedder[1], model.siglip_embedder[1], model.all_x_embedder["2-1"]):
        ((_, together),) = observed(model, layer, lambda: model(**call))
        apart = [observed(model, layer, lambda sample=sample: model(**sample))[0][1] for sample in one]
        torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)


def hidream_call(latent):
    count, generator = len(latent), torch.Generator().manual_seed(3)
    return {
        "hidden_states": latent,
        "timesteps": torch.full((count,), 500.0),
        "encoder_hidden_states_t5": torch.randn(1, 5, 32, generator=generator).expand(count, -1, -1),
        "encoder_hidden_states_llama3": torch.randn(2, 1, 5, 32, generator=generator).expand(-1, count, -1, -1),
        "pooled_embeds": torch.randn(1, 32, generator=generator).expand(count, -1),
    }


@pytest.mark.parametrize("expert", [None, LoHaConfig(r=2)], ids=["lora", "loha"])
def test_hidreams_experts_are_refused_where_gates_differ_and_routed_where_they_do_not(expert):
    settings = {} if expert is None else {"expert": expert}
    targets = ["w1", "w2", "w3"]
    model = inject_adapter_in_model(FeraConfig(target_modules=targets, **settings), hidream.make_transformer())
    fill(model).eval()
    latent = smooth_and_noisy()[..., :8]  # it has square ones alone
    with torch.no_grad(), pytest.raises(FeraError, match=r"cannot be told.*num_images_per_prompt=1.*target_modules"):
        model(**hidream_call(latent))
    with torch.no_grad():
        alone = model(**hidream_call(latent[:1])).sample
        guided = model(**hidream_call(latent[:1].repeat(2, 1, 1, 1))).sample
    torch.testing.assert_close(guided, alone.repeat(2, 1, 1, 1), rtol=1e-4, atol=1e-5)


class Rows(nn.Module):
    """A denoiser of a user's own, with a layer that sees what its caller says."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, latent, x):
        return self.layer(x)


@pytest.mark.parametrize("shape", [(3, 4), (4, 4), (1, 4), (1, 5, 4), (4,)])
def test_a_class_of_ones_own_is_refused_where_rows_cannot_be_told(shape):
    """Four rows of two dimensions may be two tokens of each, or three and one."""
    register_denoiser(Rows, latent="latent")
    model = routed(Rows(), ["layer"])
    latent, x = smooth_and_noisy(), torch.randn(shape)
    with torch.no_grad(), pytest.raises(FeraError, match="cannot be told"):
        model(latent, x)
    if x.ndim > 1:
        with torch.no_grad():
            output = model(latent[1:].repeat(2, 1, 1, 1), x)
        gates = gate_by_hand(model, latent[1:])
        expected = by_hand(model.layer, x.flatten(0, -2), gates.expand(x.shape[:-1].numel(), -1)).view(shape)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def two_samples(pipe, case):
    """A call of a case's denoiser as its pipeline makes it, for two latents that differ in all."""
    denoiser, seen = getattr(pipe, case.component), []

    def stop(module, args, kwargs):
        seen.append((inspect.signature(module.forward).bind(*args, **kwargs).arguments, module))
        raise StopIteration

    handle = denoiser.register_forward_pre_hook(stop, with_kwargs=True)
    with pytest.raises(StopIteration):
        pipe(**case.call, generator=torch.Generator().manual_seed(0))
    handle.remove()
    kind = type(denoiser).__name__
    call = {name: value for name, value in seen[0][0].items() if name not in KEPT.get(kind, ())}
    latent = call[known()[kind].latent]
    return denoiser, _two(call, len(latent))


# What a class is told of chunks that were drawn before: nothing, in a first call.
KEPT = {"AnyFlowFARTransformer3DModel": {"kv_cache", "kv_cache_flag"}}
# Arguments that are lists of one tensor a layer, not one a sample.
OF_LAYERS = {"text_encoder_layers", "id_vit_hidden"}
# The beginning of arguments that number frames, alike for all samples.
OF_FRAMES = "indices"
# The argument whose samples may have several rows: AnimateDiff's pipeline repeats the text for each frame.
TEXT = "encoder_hidden_states"


def _two_of(name, value, batch):
    if name in OF_LAYERS:
        return [_two(each, batch) for each in value]
    if "mask" in name and isinstance(value, torch.Tensor) and len(value) in (1, batch):
        return torch.cat([value[:1]] * 2)
    return value if name.startswith(OF_FRAMES) else _two(value, batch)


def _two(value, batch):
    """The first sample, and one that is smoother."""
    if isinstance(value, dict):
        return {name: _two_of(name, one, batch) for name, one in value.items()}
    if isinstance(value, list) and len(value) == batch:
        return [value[0], _smooth(value[0])]
    if isinstance(value, torch.Tensor) and value.ndim and len(value) in (1, batch):
        return torch.cat([value[:1], _smooth(value[:1])])
    return value


def _smooth(value):
    if isinstance(value, list):
        return [*value[:-1], _smooth(value[-1])]
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 2:
        return value.cumsum(-1).cumsum(-2) / 4
    return value


def _sample_of(name, value, index):
    if name in OF_LAYERS:
        return [_sample(each, index) for each in value]
    if name == TEXT and isinstance(value, torch.Tensor):
        return value.chunk(2)[index]
    return value if name.startswith(OF_FRAMES) else _sample(value, index)


def _sample(value, index):
    if isinstance(value, dict):
        return {name: _sample_of(name, one, index) for name, one in value.items()}
    is_batch = isinstance(value, list) or (isinstance(value, torch.Tensor) and value.ndim)
    return value[index : index + 1] if is_batch and len(value) == 2 else value


def linear_layers(denoiser):
    """Names of a denoiser's linear layers, and of those whose rows no call tells."""
    rows = known()[type(denoiser).__name__].rows
    names = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)]
    refused = [part for part, count in rows.items() if count is unknown]
    untold = [name for name in names if any(f".{part}." in f".{name}." for part in refused)]
    return [name for name in names if name not in untold], untold


def predicted(denoiser, call):
    result = denoiser(**call | {"return_dict": False})
    return stacked(result[0] if isinstance(result, tuple) else result)


# HiDream's has a test of its own above: its pipeline stretches what it draws. OmniGen's references are numbered across
# the samples of a call. Wan-Animate 2 draws one video a call.
ALONE = {"hidream", "omnigen-references", "wan-animate-2"}


@pytest.mark.parametrize("case", [case for case in CASES if case.name not in ALONE], ids=lambda case: case.name)
def test_a_call_of_two_latents_is_two_calls_whatever_is_adapted(case):
    """All linear layers of all denoisers that fera lists; those that refuse two latents draw from one."""
    pipe = case.pipeline()
    pipe.set_progress_bar_config(disable=True)
    denoiser, call = two_samples(pipe, case)
    told, untold = linear_layers(denoiser)
    other = copy.deepcopy(denoiser)
    routed(denoiser, told)
    with torch.no_grad(), fera.trace(denoiser) as steps:
        together = predicted(denoiser, call)
        apart = [predicted(denoiser, _sample(call, n)) for n in range(2)]
    assert (steps[0].gates[0] - steps[0].gates[1]).abs().max() > 1e-3
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-3, atol=1e-4)
    for name in untold:
        alone = routed(copy.deepcopy(other), [name])
        with torch.no_grad(), pytest.raises(FeraError, match="cannot be told"):
            predicted(alone, call)
        with torch.no_grad():
            predicted(alone, _sample(call, 0))
