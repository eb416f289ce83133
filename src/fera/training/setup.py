"""Everything a run needs before its first step: pictures, base, adapter, cache."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from peft import inject_adapter_in_model
from torch import Tensor, nn

from fera.bands import FrequencyBands
from fera.bases import load_base
from fera.errors import FeraError
from fera.pipelines import denoisers
from fera.training.cache import EncodedSet, Encoder, free_encoders
from fera.training.config import TrainConfig
from fera.training.data import Example, check_images, find_examples, hold_out, some_of
from fera.training.families import Conditions, Family, family_of
from fera.training.objective import NoiseProcess, draw_timesteps, loss_weights, noise_process
from fera.training.reporting import Reporter
from fera.tuner import FeraConfig

ADAPTER_NAME = "default"
_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setup:
    """A pipeline with a fresh adapter, and encoded data.

    Args:
        pipe: the pipeline; without its encoders where no pictures are drawn along the way.
        denoiser: its denoiser, on the device, holding the adapter.
        family: of the pipeline.
        dtype: of the denoiser's frozen weights.
        process: how its latents are noised.
        bands: of the adapter.
        training: encoded training examples.
        held_out: encoded validation examples, None where there are none.
        data_digest: hash of the training examples and their order.
        resolution: side of the pictures in pixels.
        skipped: one line about each picture left out.
    """

    pipe: Any
    denoiser: nn.Module
    family: Family
    dtype: torch.dtype
    process: NoiseProcess
    bands: FrequencyBands
    training: EncodedSet
    held_out: EncodedSet | None
    data_digest: str
    resolution: int
    skipped: list[str]

    def predictor(self, model: Callable[..., Any], conditions: Conditions) -> Callable[[Tensor, Tensor], Tensor]:
        """The denoiser as a function of noisy latents (B, C, H, W) and timesteps (B,)."""
        cast = {name: value.to(self.dtype) for name, value in conditions.items()}

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return self.family.predict(model, noisy.to(self.dtype), timesteps, cast)  # type: ignore[arg-type]

        return predict


def prepare(config: TrainConfig, device: torch.device, reporter: Reporter) -> Setup:
    """Load, check and encode. What costs little and often fails comes first.

    Args:
        config: of the run.
        device: where to encode and train.
        reporter: hears what was found.

    Raises:
        FeraError: something in the configuration, the data or the base cannot work.
    """
    examples, held_out, skipped = _read_data(config, reporter)
    dtype = _DTYPES[config.train.mixed_precision]
    # The autoencoder encodes in float32: some overflow in half precision.
    dtypes = {"vae": torch.float32, "default": dtype}
    pipe = load_base(config.base, revision=config.revision, variant=config.variant, dtype=dtypes)
    family = family_of(pipe)
    name, denoiser = next(iter(denoisers(pipe).items()))
    process = noise_process(pipe.scheduler, config.train.prediction_type)
    _check_objective(process, config)
    resolution = _resolution(pipe, denoiser, config.data.resolution)
    _report_small(examples, resolution, reporter)
    _report_long(examples, pipe.tokenizer, reporter)
    torch.manual_seed(config.seed)  # the experts' and the router's first weights
    denoiser.requires_grad_(False)
    inject_adapter_in_model(FeraConfig(**config.adapter.model_dump()), denoiser, ADAPTER_NAME)
    cast_training_params(denoiser, torch.float32)  # fresh layers follow the base's precision
    if config.train.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    _report_adapter(name, denoiser, process, reporter)

    encoder = Encoder(
        pipe=pipe,
        family=family,
        folder=config.data.cache_dir or config.output_dir / "cache",
        device=device,
        resolution=resolution,
        center_crop=config.data.center_crop,
        random_flip=config.data.random_flip,
        seed=config.seed,
        progress=reporter.advance,
    )
    training = encoder.encode(examples)
    validation = encoder.encode(held_out) if held_out else None
    if not config.validation.prompts:
        free_encoders(pipe, family)
    elif pipe.vae.dtype != dtype:
        pipe.vae.to(dtype)  # as it will be when pictures are drawn with the finished adapter
    return Setup(
        pipe=pipe,
        denoiser=denoiser.to(device),
        family=family,
        dtype=dtype,
        process=process,
        bands=FrequencyBands(config.adapter.num_bands, config.adapter.kappa),
        training=training,
        held_out=validation,
        data_digest=_digest(examples),
        resolution=resolution,
        skipped=skipped,
    )


def _read_data(config: TrainConfig, reporter: Reporter) -> tuple[list[Example], list[Example], list[str]]:
    data = config.data
    examples, skipped = check_images(find_examples(data.train_data_dir, data), skip_bad=data.skip_bad)
    if data.validation_data_dir is not None:
        found = find_examples(data.validation_data_dir, data)
        held_out, also_skipped = check_images(found, skip_bad=data.skip_bad)
        skipped += also_skipped
    else:
        examples, held_out = hold_out(examples, data.validation_fraction)
    if skipped:
        reporter.say(f"skipped {len(skipped)} pictures: {some_of(skipped)}")
    reporter.say(f"{len(examples)} training pictures from {data.train_data_dir}, {len(held_out)} held out:")
    for example in examples[:3]:
        reporter.say(f"  {example.image.name}: {example.caption or '(no caption)'}")
    return examples, held_out, skipped


def _check_objective(process: NoiseProcess, config: TrainConfig) -> None:
    """Settings that do not fit the base's noise process should not surface at the first step."""
    generator = torch.Generator().manual_seed(0)
    loss_weights(process, config.train, draw_timesteps(process, config.train, 1, generator))


def _resolution(pipe: Any, denoiser: nn.Module, asked: int | None) -> int:
    settings: Any = denoiser.config
    multiple = pipe.vae_scale_factor * (getattr(settings, "patch_size", None) or 1)
    native = settings.sample_size
    resolution = asked or (native if isinstance(native, int) else native[0]) * pipe.vae_scale_factor
    if resolution % multiple:
        raise FeraError(f"data.resolution is {resolution}, but this base needs a multiple of {multiple}")
    return resolution


def _report_small(examples: list[Example], resolution: int, reporter: Reporter) -> None:
    if small := [example.image.name for example in examples if min(example.size) < resolution]:
        reporter.say(f"{len(small)} pictures are smaller than {resolution} px and are enlarged: {some_of(small)}")


def _report_long(examples: list[Example], tokenizer: Any, reporter: Reporter) -> None:
    limit = tokenizer.model_max_length
    tokens = tokenizer([example.caption for example in examples], truncation=False).input_ids
    long = [example.image.name for example, ids in zip(examples, tokens, strict=True) if len(ids) > limit]
    if long:
        reporter.say(f"{len(long)} captions exceed the {limit} tokens of the text encoder and are cut: {some_of(long)}")


def _report_adapter(name: str, denoiser: nn.Module, process: NoiseProcess, reporter: Reporter) -> None:
    trained = sum(parameter.numel() for parameter in denoiser.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in denoiser.parameters())
    reporter.say(
        f"{type(denoiser).__name__} ({name}), {process.prediction_type}: "
        f"training {trained:,} parameters beside {total - trained:,} frozen ones"
    )


def _digest(examples: list[Example]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for example in examples:
        digest.update(f"{example.image.name}\0{example.digest}\0{example.caption}\0".encode())
    return digest.hexdigest()
