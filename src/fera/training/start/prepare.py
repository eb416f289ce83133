"""Everything a run needs before its first step: base, pictures, adapter."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fera.config import TrainConfig
from fera.data.cache.encoded import EncodedSet
from fera.data.cache.share import ALONE, Share
from fera.data.example import Example, repeat
from fera.method.bands import FrequencyBands
from fera.method.calibration import Calibration
from fera.method.routing import Routing
from fera.method.settings import KAPPA
from fera.models.families import Conditions, Family
from fera.models.layers import Layers
from fera.models.noise import NoiseProcess
from fera.pipelines.block_offload import place
from fera.support.progress import Listener
from fera.training.start.checkpointing import checkpoint_gradients
from fera.training.start.encoders import free_encoders
from fera.training.start.encoding import encode
from fera.training.start.kappa import calibrate, with_kappa
from fera.training.start.opening import Sources, given_entries, open_denoiser, open_sources
from fera.training.start.router_start import start_from_latents
from fera.training.start.stages import Course, course_of
from fera.training.step.losses import check_loss_weights
from fera.training.step.optimizers import check_optimizer
from fera.training.trained.kinds import Adapter, RoutedAdapter, adapter_of
from fera.training.trained.soft_prompt import soft_prompt_groups, start_from_captions
from fera.training.trained.start_from import Start, open_start
from fera.training.trained.text import TextTraining
from fera.training.trained.text_encoders import describe_encoder
from fera.tuner.gate import FrequencyGate
from fera.tuner.model import gate_of
from fera.tuner.subspace import describe_subspaces


@dataclass(frozen=True)
class Setup:
    """A pipeline with a fresh adapter, and encoded data.

    Args:
        pipe: the pipeline; without its encoders where no pictures are drawn along the way.
        denoiser: its denoiser, on the device unless it is to be sharded, holding the adapter.
        adapter: what trains in it.
        gate: the gate of the denoiser; None for baselines, which have none.
        family: the family of the pipeline.
        dtype: the dtype of the denoiser's frozen weights.
        process: how its latents are noised.
        bands: the bands of the adapter; None for baselines, which have none.
        calibration: how kappa was chosen; None where it was given.
        training: encoded training examples.
        held_out: encoded validation examples, None where there are none.
        lengths: the lengths of the lists that training examples are of, as `Turns` takes them.
        data_digest: hash of the training examples and their order.
        resolution: side of the square training size in pixels.
        skipped: one line about each picture left out.
        bucket_step: in pixels between the sides of buckets; None where they are off.
        text: what trains in the text encoders; None where nothing does.
        course: the stages of the run; None where it has none.
        given: entries of sources that previews are given in turn where the configuration names none.
    """

    pipe: Any
    denoiser: nn.Module
    adapter: Adapter
    gate: FrequencyGate | None
    family: Family
    dtype: torch.dtype
    process: NoiseProcess
    bands: FrequencyBands | None
    calibration: Calibration | None
    training: EncodedSet
    held_out: EncodedSet | None
    lengths: list[int]
    data_digest: str
    resolution: int
    skipped: list[str]
    bucket_step: int | None = None
    text: TextTraining | None = None
    course: Course | None = None
    given: Sequence[str] = ()

    @property
    def parameters(self) -> int:
        """Number of weights that train."""
        trained = sum(parameter.numel() for parameter in self.denoiser.parameters() if parameter.requires_grad)
        return trained + sum(parameter.numel() for parameter in (self.text.parameters if self.text else ()))

    def text_groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        """Parameter groups of the text encoders and of the soft prompt; none where nothing of the kind trains."""
        text = self.text.groups(config) if self.text is not None else []
        return [*text, *soft_prompt_groups(config.train, self.denoiser)]

    def routings(self) -> AbstractContextManager[list[Routing]]:
        """Record the gates of the forwards inside the block; none where nothing is routed."""
        return nullcontext([]) if self.gate is None else self.gate.recording()

    def conditions(self, captions: Sequence[str], cached: Conditions) -> Conditions:
        """What the denoiser is told of captions: what is cached, unless text encoders train."""
        return cached if self.text is None else self.text.encode(captions, cached)

    def predictor(self, model: Callable[..., Any], conditions: Conditions) -> Callable[[Tensor, Tensor], Tensor]:
        """The denoiser as a function of noisy latents (B, C, H, W) and timesteps (B,)."""
        cast = self.family.cast(conditions, self.dtype)

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return self.family.predict(model, noisy.to(self.dtype), timesteps, cast)  # type: ignore[arg-type]

        return predict


def prepare(
    config: TrainConfig,
    device: torch.device,
    listener: Listener,
    *,
    on_cpu: bool = False,
    former_buckets: bool = False,
    former_stages: Sequence[str] | None = None,
    share: Share = ALONE,
) -> Setup:
    """Load, check and encode. What costs little and often fails comes first.

    Args:
        config: the configuration of the run.
        device: where to encode and train.
        listener: hears what was found.
        on_cpu: leave the denoiser on the CPU, for it is to be sharded and may be too large for the device.
        former_buckets: as in `open_sources`.
        former_stages: as `former` in `course_of`.
        share: the part of what is not cached that this process encodes; the others of a launch encode theirs.

    Raises:
        FeraError: something in the configuration, the data or the base cannot work.
    """
    check_optimizer(config.train)
    with share.in_turn():  # one process downloads, draws class pictures and fills the index of pictures
        sources = open_sources(config, listener, device, former_buckets=former_buckets)
    check_loss_weights(sources.process, config.train)
    start = open_start(config.adapter, sources.pipe)
    if sources.name in sources.base.waiting:
        _check_adapter(sources, config, start)
    training, held_out, keeps_prompts = encode(sources, config, device, listener, draws=True, share=share)
    if config.validation.prompts and not keeps_prompts:
        sources.base.bring(sources.family.text_components)
    calibration = None
    if config.adapter.kappa == "auto":
        calibration = calibrate(training, sources.process, config, device, listener)
        config = with_kappa(config, calibration.kappa)
    course = course_of(config, training, repeat(sources.training), listener, device=device, former=former_stages)
    open_denoiser(sources, config, device, listener)
    adapter = _add_adapter(sources, config, start)
    _describe(sources, config, start, listener)
    if config.adapter.starts_as_partition and not (start is not None and start.has_router):
        start_from_latents(sources.denoiser, training, sources.process, config, listener)
    if start is None or not start.has_router:
        start_from_captions(sources.denoiser, training, config.seed)
    text = _train_text(sources, config, device, listener)
    if config.validation.prompts:
        _bring_for_previews(sources)
    else:
        free_encoders(sources.pipe, sources.family, text.needed if text else ())
    if not on_cpu:
        place(sources.denoiser, device)
    return Setup(
        pipe=sources.pipe,
        denoiser=sources.denoiser,
        adapter=adapter,
        gate=gate_of(sources.denoiser),
        family=sources.family,
        dtype=sources.dtype,
        process=sources.process.to(device),
        bands=_bands(adapter),
        calibration=calibration,
        training=training,
        held_out=held_out,
        lengths=sources.lengths,
        data_digest=_digest([*sources.training, *sources.class_examples]),
        resolution=sources.resolution,
        skipped=sources.skipped,
        bucket_step=sources.bucket_step,
        text=text,
        course=course,
        given=given_entries(sources.family, sources.held_out),
    )


def _bring_for_previews(sources: Sources) -> None:
    """Load what pictures are drawn with: all but text encoders whose prompts are kept."""
    base = sources.base
    base.bring(["vae"], dtype=sources.dtype)  # as it will be when pictures are drawn with the finished adapter
    if sources.pipe.vae.dtype != sources.dtype:
        sources.pipe.vae.to(sources.dtype)
    base.bring(set(base.waiting) - {*sources.family.text_components})


def _bands(adapter: Adapter) -> FrequencyBands | None:
    if not isinstance(adapter, RoutedAdapter):
        return None
    return FrequencyBands(adapter.config.num_bands, adapter.config.chosen_kappa)


def _add_adapter(sources: Sources, config: TrainConfig, start: Start | None) -> Adapter:
    """Put an adapter into the denoiser, fresh or as what it starts from."""
    adapter = adapter_of(config.adapter, start)
    denoiser = sources.denoiser
    torch.manual_seed(config.seed)  # the experts' and the router's first weights
    adapter.add(denoiser)
    if config.train.gradient_checkpointing:
        checkpoint_gradients(denoiser, sources.family)
    return adapter


def _check_adapter(sources: Sources, config: TrainConfig, start: Start | None) -> None:
    """Find what does not fit the base before anything is loaded."""
    adapter = config.adapter
    if start is not None or adapter.full:
        return
    if adapter.is_routed and adapter.expert is None:
        _add_adapter(sources, with_kappa(config, KAPPA), None)  # any kappa will do
    else:  # other schemes may start from the weights, and there are none yet
        Layers(adapter.target_modules, adapter.exclude_modules, adapter.blocks).names(sources.denoiser)


def _describe(sources: Sources, config: TrainConfig, start: Start | None, listener: Listener) -> None:
    denoiser = sources.denoiser
    if start is not None:
        listener.say(f"the adapter starts from {config.adapter.start_from}: {start}")
    if words := describe_subspaces(denoiser):
        listener.say(f"experts inside of principal subspaces: {words}")
    trained = sum(parameter.numel() for parameter in denoiser.parameters() if parameter.requires_grad)
    total = denoiser.num_parameters()  # type: ignore[operator]  # of a 4-bit layer, numel() counts bytes
    listener.say(
        f"{type(denoiser).__name__} ({sources.name}), {sources.process.prediction_type}: "
        f"training {trained:,} parameters beside {total - trained:,} frozen ones"
    )


def _train_text(sources: Sources, config: TrainConfig, device: torch.device, listener: Listener) -> TextTraining | None:
    """Put what trains in the text encoders there; not before captions were encoded with the base's."""
    if not config.trains_text:
        return None
    text = TextTraining(sources.pipe, sources.family, config, device)
    count = sum(parameter.numel() for parameter in text.parameters)
    word = config.tokens.placeholder_token
    learned = f", the word {word} from {config.tokens.initializer_token} among them" if word else ""
    encoders = ", ".join(describe_encoder(sources.pipe, name) for name in text.names)
    listener.say(f"{encoders}: training {count:,} parameters{learned}; captions are encoded at every step")
    return text


def _digest(examples: list[Example]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for example in examples:
        held = [example.name, example.digest, example.caption, example.repeats, example.weight, example.mask_digest]
        held += [source.digest for source in example.sources]
        digest.update(json.dumps(held).encode())
    return digest.hexdigest()
