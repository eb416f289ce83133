"""Blocks that wait in memory or in files: the same numbers, the weights of few blocks at a time."""

import gc
import shutil

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from tiny import make_sd3_transformer, make_unet
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tuner_cases import SD3, UNET, adapter_gradients, fill, inject, predict

from fera.errors import FeraError
from fera.models.components import offloadable_blocks
from fera.pipelines.block_offload import BlockOffload, is_offloaded, offload_blocks, waiting_names
from fera.tuner.fingerprint import fingerprint

CPU = torch.device("cpu")
DENOISERS = {"unet": (make_unet, UNet2DConditionModel, UNET), "sd3": (make_sd3_transformer, SD3Transformer2DModel, SD3)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny denoisers in files."""
    made = {name: tmp_path_factory.mktemp(name) for name in DENOISERS}
    for name, folder in made.items():
        settings = {"num_layers": 5} if name == "sd3" else {}
        DENOISERS[name][0](**settings).save_pretrained(folder)
    return made


@pytest.fixture
def load(folders):
    def make(name, offload="none", count="auto", *, checkpointing=False):
        denoiser = DENOISERS[name][1].from_pretrained(folders[name])
        offload_blocks(denoiser, CPU, offload, count)
        fill(inject(denoiser))
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        return denoiser.train()

    return make


def results(name, denoiser):
    """What a forward predicts, and the gradients of what trains."""
    denoiser.zero_grad()
    output = predict(denoiser, DENOISERS[name][2].inputs(2))
    output.square().mean().backward()
    return {"output": output.detach()} | adapter_gradients(denoiser)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Used(TorchDispatchMode):
    """Notes what is computed with the memory of some weights, copies and aliases left out."""

    def __init__(self, weights):
        super().__init__()
        self.waiting = {weight.untyped_storage().data_ptr() for weight in weights}
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        if func not in (torch.ops.aten.detach.default, torch.ops.aten.copy_.default) and any(
            one.untyped_storage().data_ptr() in self.waiting for one in tensors if one.numel()
        ):
            self.found.add(str(func))
        return func(*args, **kwargs)


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_is_computed_with_weights_where_they_wait(load, name, checkpointing):
    """On a GPU that would be an error; on a CPU no number tells."""
    denoiser = load(name, "blocks", 1, checkpointing=checkpointing)
    names = set(waiting_names(denoiser))
    with Used([weight for key, weight in denoiser.named_parameters() if key in names]) as used:
        results(name, denoiser)
    assert names and not used.found


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize(
    ("offload", "count", "checkpointing"),
    [("blocks", 1, False), ("blocks", 2, True), ("disk", 2, False), ("disk", 1, True), ("blocks", 100, False)],
)
def test_the_same_numbers_to_the_bit(load, name, offload, count, checkpointing):
    plain = load(name, checkpointing=checkpointing)
    expected = results(name, plain)
    denoiser = load(name, offload, count, checkpointing=checkpointing)
    for _ in range(3):  # the second knows which block comes next
        assert same(results(name, denoiser), expected)
    inputs = DENOISERS[name][2].inputs(2)
    with torch.no_grad():
        assert torch.equal(predict(denoiser, inputs), predict(plain, inputs))


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_few_blocks_are_on_the_device_at_a_time(load, name, checkpointing, count, monkeypatch):
    alive, peaks = [], []
    copy = BlockOffload._copy

    def noting(offload, block, used, weights):
        copy(offload, block, used, weights)
        alive.append([StorageWeakRef(weight.untyped_storage()) for weight in weights])
        alive[:] = [refs for refs in alive if not all(ref.expired() for ref in refs)]
        peaks.append(len(alive))

    monkeypatch.setattr(BlockOffload, "_copy", noting)
    denoiser = load(name, "blocks", count, checkpointing=checkpointing)
    for _ in range(2):
        results(name, denoiser)
    assert len(peaks) > len(offloadable_blocks(denoiser))  # forward and backward
    # Recomputed activations hold the weights of their own block while its gradient is taken.
    assert max(peaks) <= count + checkpointing


def test_frozen_weights_of_blocks_wait_and_nothing_else(load):
    denoiser = load("sd3", "disk")
    waiting = waiting_names(denoiser)
    assert waiting and all(name.startswith("transformer_blocks.") for name in waiting)
    trained = {name for name, weight in denoiser.named_parameters() if weight.requires_grad}
    assert trained and not trained & {*waiting}
    inside = {name for name, _ in denoiser.named_parameters() if name.startswith("transformer_blocks.")}
    assert inside - {*waiting} == {name for name in trained if name.startswith("transformer_blocks.")}
    assert waiting_names(load("sd3")) == [] and not is_offloaded(load("sd3"))


def test_adapters_that_were_there_before_stay(load):
    before = load("sd3")
    expected = results("sd3", before)
    offload_blocks(before, CPU, "blocks")
    trained = {name for name, weight in before.named_parameters() if weight.requires_grad}
    assert same(results("sd3", before), expected) and trained == {*expected} - {"output"}
    assert not trained & {*waiting_names(before)}


def test_weights_are_read_as_ever(load):
    for offload in ("blocks", "disk"):
        denoiser = load("unet", offload)
        results("unet", denoiser)
        assert fingerprint(denoiser) == fingerprint(load("unet"))


def test_files_in_another_precision_are_refused(folders):
    denoiser = SD3Transformer2DModel.from_pretrained(folders["sd3"], torch_dtype=torch.bfloat16)
    with pytest.raises(FeraError, match=r"holds transformer_blocks.*bfloat16 \(there it is float32\).*save_pretrained"):
        offload_blocks(denoiser, CPU, "disk")


def test_without_files_there_is_nothing_to_read():
    with pytest.raises(FeraError, match="no file in"):
        offload_blocks(make_unet(), CPU, "disk")


def test_files_that_went_away(folders, tmp_path):
    folder = shutil.copytree(folders["unet"], tmp_path / "unet")
    denoiser = UNet2DConditionModel.from_pretrained(folder)
    offload_blocks(denoiser, CPU, "disk")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(FeraError, match="weights of the base wait, cannot be read any more"):
        predict(denoiser, UNET.inputs(1))


def test_a_denoiser_without_blocks_is_refused():
    with pytest.raises(FeraError, match="`offload`: Linear does not say which blocks it repeats"):
        offload_blocks(torch.nn.Linear(2, 2), CPU, "blocks")


def test_an_error_inside_a_block_leaves_all_in_place(load):
    denoiser = load("sd3", "blocks")
    expected = results("sd3", load("sd3"))
    inputs = SD3.inputs(2)
    with pytest.raises(RuntimeError):
        predict(denoiser, inputs | {"encoder_hidden_states": inputs["encoder_hidden_states"][:, :, :3]})
    gc.collect()
    assert same(results("sd3", denoiser), expected)
