"""What diffusers' own methods of a denoiser must not do while it is routed.

They know plain LoRA: they would fuse some of the layers and fail at the next, leave the gate behind, write a file that
nothing reads, or replace adapted layers by fused ones that pass them by. A routed denoiser answers these calls itself,
before anything has changed; one that is no longer routed has its class's methods again.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

from torch import nn

from fera.errors import FeraError

# In the keys of a routed adapter's router, and of experts of other schemes than LoRA.
_ROUTED_KEY = re.compile(r"(^|\.)(fera\.router|fera_experts)\.")

# Of the denoiser, whether it is routed still, and what the method is given.
Guard = Callable[..., Any]


def guard(denoiser: nn.Module, routed: Callable[[nn.Module], Sequence[str]], stop: Callable[[nn.Module], None]) -> None:
    """Put the guards before a denoiser's methods, as far as it has them.

    Args:
        denoiser: the model.
        routed: names of a model's routed adapters.
        stop: takes the gate out of a model.
    """
    for name, guarded in _GUARDS.items():
        if hasattr(type(denoiser), name):
            # With the denoiser as an argument, and not in a closure: a copy of it gets a guard of its own.
            setattr(denoiser, name, partial(guarded, denoiser, routed, stop))
    if mixin := getattr(sys.modules.get("diffusers.loaders.lora_base"), "LoraBaseMixin", None):
        _guard_files(mixin)
        _guard_components(mixin)


def unguard(denoiser: nn.Module) -> None:
    """Give a denoiser its class's methods again."""
    for name in _GUARDS:
        vars(denoiser).pop(name, None)


def check_unfused(denoiser: nn.Module) -> None:
    """Refuse a denoiser in which adapters or projections are fused: routed layers would be passed by there.

    Raises:
        FeraError: there are some.
    """
    for name, module in denoiser.named_modules():
        if fused := getattr(module, "merged_adapters", None):
            raise FeraError(
                f"adapter {', '.join(fused)} is fused into {name}, and PEFT lets no other adapter act in such a layer. "
                "Unfuse it first, pipe.unfuse_lora(), and keep it active beside the routed one: "
                "fera.set_adapters(pipe, [...]); or keep it in the weights for good, pipe.unload_lora_weights(), and "
                "load the routed one with allow_other_base=True"
            )
        if getattr(module, "fused_projections", False):
            raise FeraError(
                f"the projections of {name} are fused, and an adapter of one of them would be passed by; "
                "unfuse them first: pipe.unfuse_qkv_projections()"
            )


def _fuse_lora(denoiser: nn.Module, routed: Any, stop: Any, *args: Any, **kwargs: Any) -> Any:
    _check_unrouted(denoiser, routed)
    stop(denoiser)  # an empty gate, of which PEFT would want a merge
    return type(denoiser).fuse_lora(denoiser, *args, **kwargs)  # type: ignore[attr-defined]


def _check_unrouted(denoiser: nn.Module, routed: Any) -> None:
    configs: Any = getattr(denoiser, "peft_config", {})
    if names := [name for name in routed(denoiser) if not configs[name].is_one_lora]:
        raise FeraError(
            f"no adapter can be fused while {_listing(names)} is loaded: a routed adapter has no single merged weight, "
            "and PEFT lets no adapter act in a layer that another one is fused into. Keep all of them unfused; or "
            "merge the routed one for good, fera.merge(pipe, gate=...), or take it out, fera.unload(pipe), "
            "and fuse the others then"
        )


def _fuse_qkv_projections(denoiser: nn.Module, routed: Any, stop: Any, *args: Any, **kwargs: Any) -> Any:
    if names := routed(denoiser):
        raise FeraError(
            f"projections cannot be fused while {_listing(names)} is loaded: the fused layers would pass the routed "
            "ones by. Merge the adapter first, fera.merge(pipe, gate=...), or take it out: fera.unload(pipe)"
        )
    return type(denoiser).fuse_qkv_projections(denoiser, *args, **kwargs)  # type: ignore[attr-defined]


def _unload_lora(denoiser: nn.Module, routed: Any, stop: Any, *args: Any, **kwargs: Any) -> Any:
    stop(denoiser)
    return type(denoiser).unload_lora(denoiser, *args, **kwargs)  # type: ignore[attr-defined]


def _save_lora_adapter(
    denoiser: nn.Module,
    routed: Any,
    stop: Any,
    save_directory: Any,
    adapter_name: str = "default",
    *args: Any,
    **kw: Any,
) -> Any:
    if adapter_name in routed(denoiser):
        raise no_plain_file(adapter_name)
    return type(denoiser).save_lora_adapter(denoiser, save_directory, adapter_name, *args, **kw)  # type: ignore[attr-defined]


def _guard_components(mixin: Any) -> None:
    """Let a pipeline's `fuse_lora` ask a routed denoiser before it fuses any of its components.

    It goes through them one by one: a text encoder that comes first would stay fused where the denoiser refuses.
    """
    if hasattr(mixin.fuse_lora, "_guarded"):
        return
    fuse = mixin.fuse_lora

    @wraps(fuse)
    def checked(pipe: Any, components: Sequence[str] | None = None, *args: Any, **kwargs: Any) -> Any:
        for name in components or ():
            method = getattr(getattr(pipe, name, None), "fuse_lora", None)
            if isinstance(method, partial) and method.func is _fuse_lora:
                _check_unrouted(*method.args[:2])
        return fuse(pipe, components, *args, **kwargs)

    checked._guarded = True  # type: ignore[attr-defined]
    mixin.fuse_lora = checked


def _guard_files(mixin: Any) -> None:
    """Let no pipeline write a routed adapter as a LoRA file, as diffusers' own training scripts do.

    `save_lora_weights` is a class method that is given tensors: no denoiser and no pipeline is asked.
    """
    if hasattr(mixin.write_lora_layers, "_guarded"):
        return
    write = mixin.write_lora_layers

    @wraps(write)
    def checked(
        state_dict: Mapping[str, Any], *args: Any, lora_adapter_metadata: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        kinds = [value for key, value in (lora_adapter_metadata or {}).items() if key.endswith("peft_type")]
        if any(_ROUTED_KEY.search(key) for key in state_dict) or "FERA" in map(_word, kinds):
            raise no_plain_file("this adapter")
        return write(state_dict, *args, lora_adapter_metadata=lora_adapter_metadata, **kwargs)

    checked._guarded = True  # type: ignore[attr-defined]
    mixin.write_lora_layers = staticmethod(checked)


def _word(kind: Any) -> str:
    return str(getattr(kind, "value", kind))


def no_plain_file(adapter: str) -> FeraError:
    """The error for saving a routed adapter as a plain LoRA."""
    return FeraError(
        f"{adapter} is routed, and a LoRA file of diffusers has no place for its router: nothing could load it. "
        "Save it with fera.save_adapter(pipe, ...), or write a plain LoRA of it under one fixed gate: fera export"
    )


def _listing(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


_GUARDS: dict[str, Guard] = {
    "fuse_lora": _fuse_lora,
    "fuse_qkv_projections": _fuse_qkv_projections,
    "unload_lora": _unload_lora,
    "save_lora_adapter": _save_lora_adapter,
}
