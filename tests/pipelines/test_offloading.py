"""Adapters on pipelines whose weights wait elsewhere: in groups, on a disk, layer by layer."""

import pytest
import torch
from adapter_cases import PROMPTS, add_adapter, bits, denoiser_of, draw, make_pipeline, same, write_adapter
from models.recorded import recorded_latents

import fera
from fera import FeraError
from fera.adapters.file import WEIGHTS

CPU = torch.device("cpu")


def groups(folder, **settings):
    """Group offloading of the denoiser, to a disk where there is a folder."""

    def apply(pipe):
        denoiser_of(pipe).enable_group_offload(CPU, offload_to_disk_path=folder and str(folder), **settings)

    return apply


@pytest.fixture(params=["blocks", "blocks on disk", "leaves", "leaves on disk", "two blocks on disk"])
def offload(request, tmp_path):
    folder = tmp_path / "waiting" if "disk" in request.param else None
    if "leaves" in request.param:
        return groups(folder, offload_type="leaf_level")
    return groups(folder, offload_type="block_level", num_blocks_per_group=2 if "two" in request.param else 1)


@pytest.fixture(params=["sd", "sd3"])
def kind(request):
    return request.param


def check_gates(pipe):
    """The gates are the router's, as its file has it, of the latents that the denoiser got."""
    router, bands = fera.SoftFrequencyRouter(), fera.FrequencyBands()
    with torch.no_grad():
        for name, weight in router.named_parameters():
            weight.copy_(check_gates.weights[f"base_model.model.fera.router.{name}"])
    with fera.trace(pipe) as steps, recorded_latents(pipe) as latents:
        drawn = draw(pipe)
    assert len(steps) == len(latents) == 2
    for routing, latent in zip(steps, latents, strict=True):
        torch.testing.assert_close(routing.gates, router(bands.indicator(latent.float())), rtol=1e-4, atol=1e-5)
    return drawn


def load(folder):
    from safetensors.torch import load_file

    check_gates.weights = load_file(folder / WEIGHTS)
    return folder


def test_offloaded_with_an_adapter(kind, offload, tmp_path):
    folder = load(write_adapter(kind, tmp_path / "ink", seed=1))
    pipe = make_pipeline(kind)
    fera.load_adapter(pipe, folder)
    expected = draw(pipe)
    offload(pipe)
    for _ in range(2):
        torch.testing.assert_close(check_gates(pipe), expected, rtol=1e-4, atol=1e-5)
    fera.save_adapter(pipe, tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    torch.testing.assert_close(check_gates(pipe), expected, rtol=1e-4, atol=1e-5)


def test_adapters_come_and_go_while_it_is_offloaded(kind, offload, tmp_path):
    folder, neon = load(write_adapter(kind, tmp_path / "ink", seed=1)), write_adapter(kind, tmp_path / "neon", seed=2)
    pipe = make_pipeline(kind)
    base = draw(pipe)
    fera.load_adapter(pipe, neon)
    neoned = draw(pipe)
    fera.unload(pipe)
    fera.load_adapter(pipe, folder)
    expected = draw(pipe)
    fera.unload(pipe)
    offload(pipe)
    torch.testing.assert_close(draw(pipe), base, rtol=1e-4, atol=1e-5)
    fera.load_adapter(pipe, folder)
    torch.testing.assert_close(check_gates(pipe), expected, rtol=1e-4, atol=1e-5)
    fera.load_adapter(pipe, neon, adapter_name="neon")
    torch.testing.assert_close(draw(pipe), neoned, rtol=1e-4, atol=1e-5)
    fera.set_adapters(pipe, "default")
    torch.testing.assert_close(check_gates(pipe), expected, rtol=1e-4, atol=1e-5)
    fera.load_adapter(pipe, neon, hotswap=True)
    torch.testing.assert_close(draw(pipe), neoned, rtol=1e-4, atol=1e-5)
    fera.unload(pipe)
    torch.testing.assert_close(draw(pipe), base, rtol=1e-4, atol=1e-5)


def test_merged_while_it_is_offloaded(kind, offload):
    merged = add_adapter(make_pipeline(kind))
    fera.merge(merged, "uniform")
    pipe = add_adapter(make_pipeline(kind))
    offload(pipe)
    draw(pipe)
    fera.merge(pipe, "uniform")
    torch.testing.assert_close(draw(pipe), draw(merged), rtol=1e-4, atol=1e-5)


def test_a_refused_adapter_leaves_an_offloaded_pipeline_as_it_was(offload, tmp_path):
    folder = write_adapter("sd", tmp_path / "ink")
    pipe = make_pipeline("sd")
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.mul_(1.5)
    base = draw(pipe)
    offload(pipe)
    draw(pipe)
    for _ in range(2):
        with pytest.raises(FeraError, match="trained on another base"):
            fera.load_adapter(pipe, folder)
    torch.testing.assert_close(draw(pipe), base, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("of", ["pipeline", "denoiser"])
def test_the_denoiser_alone(of, offload, tmp_path):
    folder = write_adapter("sd", tmp_path / "ink", seed=1)
    pipe = make_pipeline("sd")
    offload(pipe)
    target = pipe if of == "pipeline" else pipe.unet
    fera.load_adapter(target, folder)
    fera.save_adapter(target, tmp_path / "again")
    again = tmp_path / "again" / WEIGHTS
    from safetensors.torch import load_file

    assert same(load_file(again), load_file(folder / WEIGHTS))


# Layer by layer, as accelerate does


def test_saved_and_merged_under_sequential_offloading(tmp_path):
    pipe = add_adapter(make_pipeline("sd"))
    fera.save_adapter(pipe, tmp_path / "before")
    merged = add_adapter(make_pipeline("sd"))
    fera.merge(merged, "uniform")
    pipe.enable_sequential_cpu_offload(device="cpu")
    fera.save_adapter(pipe, tmp_path / "after")
    assert (tmp_path / "after" / WEIGHTS).read_bytes() == (tmp_path / "before" / WEIGHTS).read_bytes()
    fera.load_adapter(pipe, tmp_path / "after", hotswap=True)
    assert all(parameter.is_meta for parameter in pipe.unet.parameters())
    fera.merge(pipe, "uniform")
    pipe.remove_all_hooks()
    assert same(bits(pipe.unet), bits(merged.unet))


def test_the_denoiser_alone_under_sequential_offloading(tmp_path):
    """Its hooks belong to the pipeline: what to do is said."""
    folder = write_adapter("sd", tmp_path / "ink")
    pipe = add_adapter(make_pipeline("sd"))
    pipe.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(FeraError, match=r"not in memory.*fera.save_adapter\(pipe"):
        fera.save_adapter(pipe.unet, tmp_path / "out")
    with pytest.raises(FeraError, match=r"not in memory.*call fera.merge with the pipeline"):
        fera.merge(pipe.unet, "uniform")
    with pytest.raises(FeraError, match="not in memory.*give fera.load_adapter the pipeline"):
        fera.load_adapter(pipe.unet, folder, adapter_name="ink")
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_convolutions")
@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_groups_on_a_gpu(kind, level, disk, stream, tmp_path):
    folder = write_adapter(kind, tmp_path / "ink", seed=1)
    pipe = make_pipeline(kind)
    fera.load_adapter(pipe, folder)
    expected = draw(pipe)
    fera.unload(pipe)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module) and component is not denoiser_of(pipe):
            component.to("cuda")
    settings = {"num_blocks_per_group": 1} if level == "block_level" else {}
    path = str(tmp_path / "waiting") if disk else None
    denoiser_of(pipe).enable_group_offload(
        torch.device("cuda"), offload_type=level, use_stream=stream, offload_to_disk_path=path, **settings
    )
    fera.load_adapter(pipe, folder)
    for _ in range(3):
        torch.testing.assert_close(draw(pipe, PROMPTS).cpu(), expected, rtol=1e-3, atol=1e-4)
    assert all(parameter.is_cuda for parameter in denoiser_of(pipe).fera.parameters())
    fera.save_adapter(pipe, tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    torch.testing.assert_close(draw(pipe, PROMPTS).cpu(), expected, rtol=1e-3, atol=1e-4)
