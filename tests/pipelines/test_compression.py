"""A base held as its principal parts: what its layers compute, what it weighs, and that adapters go on as ever."""

import copy

import pytest
import torch
from adapter_cases import add_adapter, denoiser_of, make_pipeline
from listeners import train
from peft import inject_adapter_in_model
from tiny import make_unet
from torch import nn
from training_cases import assert_resumes, run_config
from tuner_cases import SD3, UNET, predict

import fera
from fera import FeraConfig, FeraError
from fera.export import merge
from fera.pipelines.compression import FactoredConv2d, FactoredLinear, compress, is_compressed
from fera.training import TrainConfig
from fera.tuner.fingerprint import fingerprint


def low_rank(model, rank=3):
    """Give every weight so low a rank that factors are smaller, with little beside it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if type(module) in (nn.Linear, nn.Conv2d):
                flat = module.weight.flatten(1)
                thin = torch.randn(len(flat), rank, generator=generator) @ torch.randn(
                    rank, flat.shape[1], generator=generator
                )
                noise = 1e-3 * torch.randn(flat.shape, generator=generator)
                module.weight.copy_(((thin / flat.shape[1] ** 0.5) + noise).view_as(module.weight))
    return model


def by_hand(weight, energy):
    """The principal part by an SVD in float64; None where its factors are no smaller."""
    matrix = weight.detach().flatten(1).double()
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((values.square().cumsum(0) / values.square().sum() < energy).sum()) + 1
    if rank * sum(matrix.shape) >= matrix.numel():
        return None
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).view(weight.shape)


@pytest.mark.parametrize("case", [UNET, SD3], ids=repr)
def test_it_computes_what_its_principal_parts_compute(case):
    model, inputs = low_rank(case.model()), case.inputs(2)
    expected, count = copy.deepcopy(model), 0
    with torch.no_grad():
        for module in expected.modules():
            if type(module) in (nn.Linear, nn.Conv2d):
                part = by_hand(module.weight, 0.95)
                if part is not None:
                    count += 1
                    module.weight.copy_(part)
    whole = predict(model, inputs)
    found = compress(model, 0.95)
    assert count == found.factored > 5 and found.layers >= count
    assert found.after < found.before == sum(weight.numel() for weight in expected.parameters())
    assert found.after == sum(weight.numel() for weight in model.parameters())
    torch.testing.assert_close(predict(model, inputs), predict(expected, inputs), rtol=1e-3, atol=1e-4)
    assert not torch.equal(predict(model, inputs), whole)
    held = [weight for name, weight in model.named_parameters() if name.endswith((".left", ".right"))]
    assert len(held) == 2 * count and not any(weight.requires_grad for weight in held)


def test_what_would_not_be_smaller_stays_whole():
    model, inputs = make_unet(), UNET.inputs(2)
    whole = predict(model, inputs)
    found = compress(model, 0.9999)
    assert found.factored == 0 and found.after == found.before and not is_compressed(model)
    assert torch.equal(predict(model, inputs), whole)
    assert "0 of" in str(found) and "(100%)" in str(found)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(24, 16),
        nn.Linear(24, 16, bias=False),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.Conv2d(12, 16, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(12, 16, 3, padding=2, dilation=2, padding_mode="circular"),
    ],
    ids=str,
)
def test_a_layer_by_hand(layer):
    layer = low_rank(nn.Sequential(layer))[0]
    part = by_hand(layer.weight, 0.95)
    model = nn.Sequential(copy.deepcopy(layer)).to(torch.float64)
    from fera.pipelines.compression import _factors

    factored = _factors(model[0], 0.95, None)
    assert isinstance(factored, FactoredLinear | FactoredConv2d) and isinstance(factored, type(layer))
    expected = copy.deepcopy(layer).double()
    with torch.no_grad():
        expected.weight.copy_(part)
    shape = (2, 5, 24) if isinstance(layer, nn.Linear) else (2, 12, 9, 8)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(factored(x), expected(x))
    torch.testing.assert_close(factored.weight, part)


def test_grouped_convolutions_stay_whole():
    model = nn.ModuleList([nn.Conv2d(8, 8, 3, groups=8)])
    from fera.pipelines.compression import _factors

    assert _factors(model[0], 0.1, None) is None


def test_adapters_of_the_whole_base_load_and_the_other_way_round(tmp_path):
    whole = make_pipeline("sd")
    low_rank(denoiser_of(whole))
    compressed = copy.deepcopy(whole)
    known = fingerprint(denoiser_of(whole))
    compress(compressed, 0.95)
    assert fingerprint(denoiser_of(compressed)) == known and is_compressed(denoiser_of(compressed))
    for one, other, name in ((whole, compressed, "a"), (compressed, whole, "b")):
        add_adapter(one)
        fera.save_adapter(one, tmp_path / name)
        fera.load_adapter(other, tmp_path / name)
        assert predict(denoiser_of(other), UNET.inputs(2)).isfinite().all()
        for pipe in (one, other):
            fera.unload(pipe)
    other_base = make_pipeline("sd")
    with pytest.raises(FeraError, match="trained on another base"):
        fera.load_adapter(other_base, tmp_path / "b")


def test_experts_and_gradients_on_a_compressed_base():
    model, inputs = low_rank(make_unet()), UNET.inputs(2)
    compress(model, 0.95)
    before = predict(model, inputs)
    for adapter, settings in {"default": {}, "second": {"expert": {"peft_type": "CERSA", "energy": 0.9}}}.items():
        inject_adapter_in_model(FeraConfig(target_modules=["to_q", "conv1"], **settings), model, adapter)
    assert torch.equal(predict(model, inputs), before)
    fera.set_adapters(model, ["default"])
    model(**inputs)[0].square().mean().backward()
    grads = [weight.grad for name, weight in model.named_parameters() if ".lora_B.default" in name]
    assert grads and all(grad is not None and grad.abs().max() > 0 for grad in grads)


def test_what_cannot_be(tmp_path):
    pipe = make_pipeline("sd")
    for energy in (0, 1, 1.5, True, "half"):
        with pytest.raises(FeraError, match="`energy` must be a share"):
            compress(pipe, energy)
    low_rank(denoiser_of(pipe))
    with_adapter = copy.deepcopy(pipe)
    add_adapter(with_adapter)
    with pytest.raises(FeraError, match="compress the base before they are put in"):
        compress(with_adapter, 0.95)
    compress(pipe, 0.95)
    with pytest.raises(FeraError, match="compressed already"):
        compress(pipe, 0.95)
    add_adapter(pipe)
    with pytest.raises(FeraError, match="Merge into the whole base"):
        merge(pipe, gate="uniform")
    with torch.device("meta"):
        empty = make_unet()
    with pytest.raises(FeraError, match="quantized or not in memory"):
        compress(empty, 0.95)


def test_a_run_on_a_compressed_base_goes_on_bit_for_bit(image_folder, tmp_path, capsys):
    pipe = make_pipeline("sd")
    low_rank(denoiser_of(pipe))
    pipe.save_pretrained(tmp_path / "base")
    settings = {"compress": {"energy": 0.95}, "train": {"checkpointing_steps": 1}}
    configs = [run_config(tmp_path / "base", image_folder, tmp_path / name, **settings) for name in ("one", "two")]
    assert_resumes(*configs, 2, "loss")
    fera.load_adapter(pipe, configs[0].output_dir / "adapter")
    train(run_config(tmp_path / "base", image_folder, tmp_path / "three", **settings))
    assert "layers held as factors" in capsys.readouterr().err
    other = run_config(tmp_path / "base", image_folder, tmp_path / "one", train=settings["train"])
    with pytest.raises(FeraError, match=r"compress\.energy is None, was 0\.95"):
        train(other, resume=True)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"quantization": "8bit"}, "leave it or quantization out"),
        ({"adapter": {"full": True}}, "leave it or adapter.full"),
        ({"train": {"offload": "blocks"}}, "leave it or train.offload out"),
        ({"compress": {"energy": 1.0}}, "less than 1"),
    ],
)
def test_what_does_not_go_with_it(tmp_path, sections, message):
    settings = {"base": "b", "output_dir": tmp_path, "data": {"train_data_dir": tmp_path}, "compress": {"energy": 0.9}}
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate(settings | sections)
