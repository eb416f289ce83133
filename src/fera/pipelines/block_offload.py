"""A frozen denoiser whose repeated blocks wait elsewhere and come to the device for their use, in training too.

A block's frozen weights wait in host memory, or in the base's own files, mapped and not read. They are copied to the
device when the block is called, the next block's meanwhile, and the copies of the blocks used last are kept. Autograd
is to remember no copy: what a forward would save of a frozen weight is saved as its place, and the backward pass has
the block's weights come again. Whatever is no frozen weight of a block, an adapter above all, stays on the device.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fera.errors import FeraError
from fera.models.components import offloadable_blocks
from fera.pipelines.empty_parts import is_empty, move_empty
from fera.pipelines.weight_files import files_of, folder_of, is_same, mapped, plain_name, tensors_of
from fera.tuner.fingerprint import added_tensors

# One block in use and the next one on its way.
_AUTO = 2
# Where PyTorch copies beside computing.
_WITH_STREAMS = ("cuda", "xpu")
_ATTRIBUTE = "_fera_offload"


def offload_blocks(denoiser: nn.Module, device: torch.device, offload: str, blocks: int | str = "auto") -> None:
    """Let a denoiser's blocks wait, and move all else of it to the device.

    Args:
        denoiser: a model of diffusers on the CPU, with or without adapters; its own weights are frozen.
        device: where it computes.
        offload: "blocks" waits in host memory (pinned for a GPU), "disk" in the files that the denoiser was loaded
            from; "none" does nothing.
        blocks: how many blocks may have weights on the device at a time; "auto" is 2, one in use and one on
            its way; with 1 none is fetched ahead.

    Raises:
        FeraError: the denoiser does not say which blocks it repeats, or "disk" finds no file that holds its weights as
            they are.
    """
    if offload == "none":
        return
    count = blocks_on_device(blocks)
    vars(denoiser)[_ATTRIBUTE] = BlockOffload(denoiser, device, count, from_disk=offload == "disk")
    place(denoiser, device)


def check_offload(denoiser: nn.Module, offload: str, files: Sequence[Path]) -> None:
    """Find what `offload_blocks` would refuse, before a denoiser is loaded.

    Args:
        denoiser: it, with its weights or without.
        offload: as in `offload_blocks`.
        files: the safetensors files that hold its weights; none where they are not known.

    Raises:
        FeraError: as in `offload_blocks`.
    """
    if offload == "none":
        return
    blocks = _blocks_of(denoiser)
    if offload == "disk" and files:
        held, names = tensors_of(files), {id(weight): name for name, weight in denoiser.named_parameters()}
        for weight in (weight for block in blocks for weight in block.parameters()):
            name = names[id(weight)]
            found = [mapped(path, name) for path in held.get(name, ())]
            if not any(tensor.dtype == weight.dtype and tensor.shape == weight.shape for tensor in found):
                raise _not_in_files(str(files[0].parent), name, weight, held.get(name, ()))


def blocks_on_device(setting: int | str) -> int:
    """How many blocks may have weights on the device at a time, from the setting of that name."""
    return _AUTO if setting == "auto" else int(setting)


def is_offloaded(denoiser: nn.Module) -> bool:
    """Whether blocks of a denoiser wait elsewhere."""
    return _ATTRIBUTE in vars(denoiser)


def waiting_names(denoiser: nn.Module) -> list[str]:
    """Names of a denoiser's parameters that wait elsewhere, as `named_parameters` has them."""
    if not is_offloaded(denoiser):
        return []
    waiting = vars(denoiser)[_ATTRIBUTE].ids
    return [name for name, parameter in denoiser.named_parameters() if id(parameter) in waiting]


def place(part: nn.Module, device: torch.device | str) -> None:
    """Move a part of a pipeline, but for weights that wait elsewhere.

    Args:
        part: a denoiser, offloaded or not, or any other part.
        device: where to.
    """
    if is_empty(part):
        move_empty(part, device)
        return
    if not is_offloaded(part):
        part.to(device)
        return
    offload: BlockOffload = vars(part)[_ATTRIBUTE]
    with offload.emptied():
        part.to(device)


def move(pipe: Any, device: torch.device | str) -> None:
    """Move a pipeline, but for weights that wait elsewhere: a denoiser with such stays where it computes.

    Args:
        pipe: a pipeline of diffusers.
        device: where to.
    """
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    if not any(is_offloaded(part) or is_empty(part) for part in parts):
        pipe.to(device)
        return
    for part in parts:
        if not is_offloaded(part):
            place(part, device)


@dataclass
class _Block:
    """A block and its frozen weights.

    `slots` says under which names modules have each, `files` where those are that wait on the disk, and `strides` how
    each lies on the device: a file has convolutions in the order of their axes, and they may have been laid out
    channels last since.
    """

    module: nn.Module
    weights: list[nn.Parameter]
    slots: list[list[tuple[nn.Module, str]]]
    strides: list[tuple[int, ...]]
    files: dict[int, tuple[Path, str]] = field(default_factory=dict)
    held: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class _Place:
    """A view of a weight, in place of the view."""

    block: int
    weight: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: Any  # an int; PyTorch's types allow for symbols


@dataclass(frozen=True)
class _Arrival:
    """A block's weights on the device, all of them once the worker is done."""

    done: Future[None]
    weights: list[Tensor]


class BlockOffload:
    """The blocks of one denoiser.

    Args:
        denoiser: as in `offload_blocks`; gets hooks.
        device: where it computes.
        count: blocks that may have weights on the device, at least 1.
        from_disk: whether they wait in files.

    Attributes:
        ids: of the parameters that wait.

    Raises:
        FeraError: as `offload_blocks` does.
    """

    def __init__(self, denoiser: nn.Module, device: torch.device, count: int, *, from_disk: bool) -> None:
        self._device, self._count = device, count
        added = {id(tensor) for tensor in added_tensors(denoiser)}
        self._blocks: list[_Block] = []
        for module in _blocks_of(denoiser):
            slots: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
            for owner in module.modules():
                for name, weight in owner.named_parameters(recurse=False):
                    if id(weight) not in added:
                        slots.setdefault(weight, []).append((owner, name))
            strides = [weight.stride() for weight in slots]
            self._blocks.append(_Block(module, list(slots), list(slots.values()), strides))
        self.ids = {id(weight) for block in self._blocks for weight in block.weights}
        if from_disk:
            self._find_files(denoiser)
        self._has_streams = device.type in _WITH_STREAMS
        streams: Any = torch.get_device_module(device) if self._has_streams else torch.cpu
        self._streams, self._side = streams, streams.Stream()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="fera-offload")
        # Blocks whose weights are on the device or on their way there, the one used last at the end.
        self._residents: OrderedDict[int, _Arrival] = OrderedDict()
        # Storage of a weight on the device to the block and the place in it.
        self._owners: dict[int, tuple[int, int]] = {}
        # Two blocks in a row tell which comes next, forward and backward alike.
        self._next: dict[tuple[int, int], int] = {}
        self._last = (-1, -1)
        self._saving: list[Any] = []
        for index, block in enumerate(self._blocks):
            for weight in block.weights:
                weight.requires_grad_(False)
                if self._has_streams and not block.files:
                    weight.data = weight.data.pin_memory()
            self._hook(index, block)
        denoiser.register_forward_pre_hook(self._save_places)
        denoiser.register_forward_hook(self._save_no_longer, always_call=True)

    @contextmanager
    def emptied(self) -> Iterator[None]:
        """Blocks without the weights that wait, inside the block: what moves them moves all else."""
        self._residents.clear()
        self._owners.clear()
        waiting = [(weight, weight.data) for block in self._blocks for weight in block.weights]
        for weight, _ in waiting:
            weight.data = weight.data.new_empty(0)
        try:
            yield
        finally:
            for weight, data in waiting:
                weight.data = data

    def _hook(self, index: int, block: _Block) -> None:
        def come(*_: Any) -> None:
            weights = self._fetch(index)
            block.held = [weight.data for weight in block.weights]
            for weight, slots, here in zip(block.weights, block.slots, weights, strict=True):
                if type(weight) is not nn.Parameter:  # a package's own, which knows how it is quantized
                    weight.data = here
                    continue
                # Another parameter, not other data: checkpointing keeps the very object for the backward pass, when
                # the block has left.
                arrived = nn.Parameter(here, requires_grad=False)
                for owner, name in slots:
                    owner._parameters[name] = arrived

        def leave(*_: Any) -> None:
            if not block.held:  # its weights did not come
                return
            for weight, slots, held in zip(block.weights, block.slots, block.held, strict=True):
                if type(weight) is not nn.Parameter:
                    weight.data = held
                    continue
                for owner, name in slots:
                    owner._parameters[name] = weight
            block.held = []

        # Checkpointing leaves a block by an exception, once it has computed what it was missing.
        block.module.register_forward_pre_hook(torch.compiler.disable(come), prepend=True)
        block.module.register_forward_hook(torch.compiler.disable(leave), always_call=True)

    def _fetch(self, index: int) -> list[Tensor]:
        """The weights of a block on the device, and the next block's set off."""
        if index not in self._residents:
            self._send_for(index)
        self._residents.move_to_end(index)
        arrival = self._residents[index]
        arrival.done.result()
        weights = arrival.weights
        stream = self._streams.current_stream()
        stream.wait_stream(self._side)
        for number, weight in enumerate(weights):
            if self._has_streams:
                weight.record_stream(stream)
            if weight.numel():
                self._owners[weight.untyped_storage().data_ptr()] = index, number
        if index != self._last[1]:
            self._next[self._last] = index
            self._last = self._last[1], index
        ahead = self._next.get(self._last)
        if self._count > 1 and ahead is not None and ahead not in self._residents:
            self._send_for(ahead)
        return weights

    def _send_for(self, index: int) -> None:
        """Have the worker copy a block's weights, in the place of those that were used longest ago."""
        while len(self._residents) >= self._count:
            gone, arrival = self._residents.popitem(last=False)
            arrival.weights.clear()  # now, for the worker may still hold the list
            self._owners = {key: owner for key, owner in self._owners.items() if owner[0] != gone}
        # The device is behind: without waiting for what it still has to compute, memory would fill with copies.
        used = self._streams.current_stream().record_event()
        weights: list[Tensor] = []
        self._residents[index] = _Arrival(self._worker.submit(self._copy, self._blocks[index], used, weights), weights)

    @torch.no_grad()
    def _copy(self, block: _Block, used: Any, weights: list[Tensor]) -> None:
        if used is not None:
            used.synchronize()
        with self._streams.stream(self._side):
            for number, (weight, stride) in enumerate(zip(block.weights, block.strides, strict=True)):
                # Of a file by a mapping for this copy alone: the pages that are read of it go with it.
                source = mapped(*block.files[number]) if number in block.files else weight.data
                # A copy on a CPU too: it is the device there.
                here = torch.empty_strided(source.shape, stride, dtype=source.dtype, device=self._device)
                weights.append(here.copy_(source, non_blocking=self._has_streams))

    def _save_places(self, *_: Any) -> None:
        """While the denoiser's forward runs; inside of checkpointed blocks, checkpointing's own hooks come first."""
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        hooks.__enter__()
        self._saving.append(hooks)

    def _save_no_longer(self, *_: Any) -> None:
        if self._saving:
            self._saving.pop().__exit__(None, None, None)

    def _pack(self, tensor: Tensor) -> Tensor | _Place:
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
            return tensor
        owner = self._owners.get(tensor.untyped_storage().data_ptr()) if tensor.numel() else None
        if owner is None or tensor.dtype != self._blocks[owner[0]].weights[owner[1]].dtype:
            return tensor
        return _Place(*owner, tensor.size(), tensor.stride(), tensor.storage_offset())

    def _unpack(self, saved: Tensor | _Place) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        return self._fetch(saved.block)[saved.weight].as_strided(saved.size, saved.stride, saved.offset)

    def _find_files(self, denoiser: nn.Module) -> None:
        """Map each weight from the file that holds it, as it is.

        Raises:
            FeraError: none does.
        """
        held = tensors_of(files_of(denoiser))
        names = {id(weight): plain_name(name) for name, weight in denoiser.named_parameters()}
        for block in self._blocks:
            for number, weight in enumerate(block.weights):
                name = names[id(weight)]
                file = next((path for path in held.get(name, ()) if is_same(weight.data, mapped(path, name))), None)
                if file is None:
                    raise _not_in_files(folder_of(denoiser), name, weight, held.get(name, ()))
                block.files[number] = file, name
                weight.data = mapped(file, name)


def _blocks_of(denoiser: nn.Module) -> list[nn.Module]:
    blocks = offloadable_blocks(denoiser)
    if not blocks:
        raise FeraError(
            f"`offload`: {type(denoiser).__name__} does not say which blocks it repeats, so none can wait elsewhere"
        )
    return blocks


def _not_in_files(where: str, name: str, weight: Tensor, files: Sequence[Path]) -> FeraError:
    kept = {str(mapped(path, name).dtype).removeprefix("torch.") for path in files}
    return FeraError(
        f"`offload` is disk, but no file in {where} holds {name} as it is used here, in "
        f"{str(weight.dtype).removeprefix('torch.')}"
        + (f" (there it is {' and '.join(sorted(kept))})" if kept else "")
        + ": take the files' own precision, save the base once in this one by `save_pretrained`, or let blocks wait in "
        "memory"
    )
