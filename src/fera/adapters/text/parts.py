"""An adapter's text parts in a pipeline: put in, weighed, taken out, merged, by the adapter's name."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from fera.adapters.text.encoders import text_encoders, tokenizer_for
from fera.adapters.text.files import TextFiles, Token
from fera.adapters.text.lora import (
    activate_loras,
    active_loras,
    add_lora,
    fill_lora,
    lora_layers,
    lora_of,
    path_in,
    scale_lora,
    tell_transformers,
)
from fera.adapters.text.text_lora import TextLora
from fera.adapters.text.tokens import add_token, check_token, keep_token, learned_tokens, remove_token
from fera.errors import FeraError
from fera.tuner.model import remove_adapters


def text_of(pipe: Any, adapter: str) -> tuple[dict[str, TextLora], Token | None]:
    """Text parts of an adapter in a pipeline: LoRAs by text encoder, and its token."""
    loras, rows, name = {}, {}, ""
    for encoder, module in text_encoders(pipe).items():
        if lora := lora_of(module, adapter):
            loras[encoder] = lora
        learned = learned_tokens(module)
        if learned is not None and adapter in learned.tokens:
            name = learned.tokens[adapter]
            rows[encoder] = learned.rows[adapter].detach().cpu().clone()
    return loras, Token(name, rows) if rows else None


def check_text(pipe: Any, files: TextFiles, adapter: str) -> None:
    """Hold text parts against the text encoders that are to get them; changes nothing.

    Raises:
        FeraError: an encoder is missing, is another, has such an adapter, or its tokenizer knows the token.
    """
    encoders = text_encoders(pipe)
    if missing := [name for name in files.encoders if name not in encoders]:
        raise FeraError(
            f"the adapter has a part in {', '.join(missing)}, but this pipeline has no such text encoder; "
            "for the denoiser's part alone, load it into the denoiser itself: fera.load_adapter(pipe.unet, ...)"
        )
    for name, (_, _, layers) in files.loras.items():
        encoder = encoders[name]
        if adapter in getattr(encoder, "peft_config", {}):
            raise FeraError(f"{name} already has an adapter {adapter!r}; choose another adapter_name, or unload it")
        modules = dict(encoder.named_modules())
        for path, features in layers.items():
            layer = modules.get(path_in(encoder, path))
            layer = getattr(layer, "base_layer", layer)
            have = (getattr(layer, "in_features", None), getattr(layer, "out_features", None))
            if have != features:
                raise FeraError(f"the adapter's LoRA for {path} has {features} features, {name} has {have} there")
    for name, (count, width) in files.vectors.items():
        size = encoders[name].get_input_embeddings().weight.shape[1]
        if width != size:
            raise FeraError(f"the adapter's token {files.token!r} is {width} wide, {name} is {size}")
        check_token(tokenizer_for(pipe, name), str(files.token), count)


def put_text(pipe: Any, files: TextFiles, adapter: str) -> None:
    """Put text parts that were checked into a pipeline."""
    encoders = text_encoders(pipe)
    for name, (rank, alpha, layers) in files.loras.items():
        encoder = encoders[name]
        was_training, active = encoder.training, active_loras(encoder)
        add_lora(encoder, adapter, rank, alpha, [path_in(encoder, path) for path in layers], inference=True)
        fill_lora(encoder, adapter, files.lora(name))
        activate_loras(encoder, [*active, adapter])
        encoder.train(was_training)  # fresh layers are in training mode
    for name in files.vectors:
        add_token(pipe, name, adapter, str(files.token), files.rows(name))


def swap_text(pipe: Any, files: TextFiles | None, adapter: str, *, only_check: bool) -> None:
    """Replace text parts by those of another adapter, in place.

    Args:
        pipe: the pipeline.
        files: the other adapter's; None where it has none.
        adapter: the one that is there.
        only_check: change nothing.

    Raises:
        FeraError: they differ in more than their weights.
    """
    loras, token = text_of(pipe, adapter)
    here = (
        {name: (lora.rank, lora.alpha, _features(lora)) for name, lora in loras.items()},
        token and (token.name, {name: tuple(rows.shape) for name, rows in token.rows.items()}),
    )
    given = (files.loras if files else {}, (files.token, files.vectors) if files and files.token else None)
    if here != given:
        raise FeraError(
            f"cannot replace adapter {adapter!r} in place: its parts in the text encoders differ in more than their "
            "weights; unload it and load the file without hotswap"
        )
    if only_check or files is None:
        return
    encoders = text_encoders(pipe)
    for name in files.loras:
        fill_lora(encoders[name], adapter, files.lora(name))
    for name in files.vectors:
        learned = learned_tokens(encoders[name])
        assert learned is not None
        learned.rows[adapter].data.copy_(files.rows(name))


def activate_text(pipe: Any, known: Iterable[str], weights: Mapping[str, float]) -> None:
    """Let the LoRAs of some adapters act, and no other that the denoisers have too; those of others stay as they are.

    A token has no weight: it is a word, and acts where a prompt has it.

    Args:
        pipe: the pipeline.
        known: names of all adapters of the denoisers.
        weights: those to activate, with the weight of each.
    """
    known = set(known)
    for encoder in text_encoders(pipe).values():
        own = [name for name in getattr(encoder, "peft_config", {}) if name in known]
        if not own:
            continue
        wanted = [name for name in weights if name in own]
        activate_loras(encoder, [*(name for name in active_loras(encoder) if name not in known), *wanted])
        for name in wanted:
            scale_lora(encoder, name, weights[name])


def remove_text(pipe: Any, adapters: Collection[str] | None, loras: Collection[str]) -> None:
    """Take text parts out of a pipeline.

    Args:
        pipe: the pipeline.
        adapters: whose tokens to take out; all when None.
        loras: whose LoRAs to take out.
    """
    for name, encoder in text_encoders(pipe).items():
        if own := [adapter for adapter in loras if adapter in getattr(encoder, "peft_config", {})]:
            remove_adapters(encoder, own)
            tell_transformers(encoder)
        learned = learned_tokens(encoder)
        for adapter in list(learned.tokens) if learned is not None else []:
            if adapters is None or adapter in adapters:
                remove_token(pipe, name, adapter)


def text_layers(pipe: Any, adapter: str) -> dict[str, Any]:
    """Layers that hold an adapter's LoRA, by their path behind the text encoder's name."""
    return {
        f"{name}.{path}": layer
        for name, encoder in text_encoders(pipe).items()
        for path, layer in lora_layers(encoder, adapter).items()
    }


def merge_text(pipe: Any, adapter: str) -> None:
    """Merge an adapter's LoRAs into the text encoders, at their weight, and keep its token for good."""
    for layer in text_layers(pipe, adapter).values():
        layer.merge(adapter_names=[adapter])
        layer.merged_adapters.remove(adapter)  # it is to be deleted, and the others of this layer still act
    for name in text_encoders(pipe):
        keep_token(pipe, name, adapter)


def _features(lora: TextLora) -> dict[str, tuple[int, int]]:
    return {path: (down.shape[1], up.shape[0]) for path, (down, up) in lora.layers.items()}
