"""One evaluation, from a pipeline and a folder to numbers."""

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor, nn

from fera.config import DataConfig
from fera.data.checking import Example, check_images, find_examples
from fera.data.index import user_index
from fera.errors import FeraError
from fera.evaluation.closeness import draw_both, drift_of, similarities
from fera.evaluation.concepts import gallery_of, mean_reciprocal, other_styles_gallery, share_within
from fera.evaluation.denoising import Progress, denoising_samples, encode_folder, mean_losses
from fera.evaluation.drawing import Drawn, draw_pictures, prompts_of
from fera.evaluation.results import Evaluation, Picture
from fera.evaluation.settings import EvaluationSettings
from fera.features.judge import Judge, Look, load_judge
from fera.features.pixels import PixelSet
from fera.models.components import denoisers
from fera.models.families import native_resolution, size_multiple, sound_of
from fera.version import __version__

_DRAWN_METRICS = (
    "fid",
    "kid",
    "similarity",
    "drift",
    "sliced_wasserstein",
    "style_score",
    "concept_score",
    "text_score",
    "diversity_within_prompt",
    "diversity_between_prompts",
)
_JUDGED = ("style_score", "concept_score", "concept_score_other_styles")
_OF_FEATURES = ("fid", "kid", "similarity", "diversity_within_prompt", "diversity_between_prompts")
_Pair = tuple[list[Image.Image], list[Image.Image]]


def evaluate(
    pipe: Any,
    folder: Path,
    settings: EvaluationSettings | None = None,
    *,
    output: Path | None = None,
    cache: Path | None = None,
    judge: Judge | Literal["auto"] | None = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a pipeline, with its adapters as they are set, on a folder of real pictures.

    The same settings and folder give the same pictures, noise, timesteps, prompts and seeds whatever the adapter is, so
    that two evaluations compare sample by sample and picture by picture.

    Args:
        pipe: a diffusers pipeline of a family that fera trains, with autoencoder and text encoders; with fera's
            adapters, others, none, or a fine-tuned denoiser. It is left as it was.
        folder: real pictures with captions, in either layout that fera trains on.
        settings: what to look at; the defaults when left out.
        output: gets the generated pictures, `grid.png` and `evaluation.json`; nothing is written when left out.
        cache: for latents and embeddings, as `data.cache_dir` of a run, and may be shared with it; a temporary folder
            when left out.
        judge: scores style and concept; "auto" is the one that comes with fera, None does without.
        progress: told (what, done, of how many).

    Returns:
        The evaluation.

    Raises:
        FeraError: the folder cannot be used, the pipeline is of a family that fera does not train, a wanted network
            cannot be had, or the output cannot be written.
    """
    settings = settings or EvaluationSettings()
    if sound_of(pipe) is not None:
        raise FeraError(
            f"fera evaluate looks at pictures, and {type(pipe).__name__} makes sound: fera report shows a run's"
        )
    if settings.features == "judge" and judge is None:
        raise FeraError('features = "judge" needs a judge; leave judge out for the one that comes with fera')
    progress = progress or _silent
    folder = Path(folder)
    output = None if output is None else Path(output)
    if judge == "auto":
        judge = load_judge() if settings.images_per_prompt else None
    source = _feature_source(settings)
    examples, _ = check_images(
        find_examples(folder, DataConfig(train_data_dir=folder)), skip_bad=False, index=user_index()
    )
    size = _size(pipe, settings)
    with ExitStack() as stack:
        if cache is None:
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fera-evaluate-")))
        evaluation = _measured_loss(pipe, folder, examples, size, settings, Path(cache), progress)
        if settings.images_per_prompt == 0:
            reasons = dict.fromkeys(_DRAWN_METRICS, "no pictures were drawn (images_per_prompt = 0)")
            evaluation = replace(evaluation, reasons=reasons)
        else:
            prompts = prompts_of([example.caption for example in examples], settings)
            drawn = draw_pictures(pipe, prompts, settings, size, output, progress)
            evaluation = _with_pictures(evaluation, drawn, examples, size, judge, source)
            if settings.drift_prompts is not None:
                both = draw_both(pipe, settings, size, output, progress)
                evaluation = _with_drift(evaluation, both, size, judge, source)
    if output is not None:
        _save(evaluation, output)
    return evaluation


def _measured_loss(
    pipe: Any,
    folder: Path,
    examples: list[Example],
    size: tuple[int, int],
    settings: EvaluationSettings,
    cache: Path,
    progress: Progress,
) -> Evaluation:
    """An evaluation that knows the losses, and nothing else yet."""
    device = next(next(iter(denoisers(pipe).values())).parameters()).device
    data = encode_folder(pipe, examples, size, cache, device, progress)
    _parts_to(pipe, device)  # encoding leaves its parts on the CPU
    samples = denoising_samples(pipe, data, settings, progress)
    loss, by_timestep, by_band = mean_losses(samples)
    return Evaluation(
        folder=str(folder),
        settings=settings,
        samples=samples,
        loss=loss,
        loss_by_timestep=by_timestep,
        loss_by_band=by_band,
        fera=__version__,
    )


def _with_pictures(
    evaluation: Evaluation,
    drawn: Drawn,
    examples: list[Example],
    size: tuple[int, int],
    judge: Judge | None,
    source: Any,
) -> Evaluation:
    """What the generated pictures add."""
    from fera.evaluation.wasserstein import sliced_wasserstein

    settings = evaluation.settings
    real, generated = PixelSet([example.image for example in examples], size), PixelSet(drawn.images, size)
    evaluation = replace(
        evaluation,
        pictures=tuple(drawn.pictures),
        sliced_wasserstein=sliced_wasserstein(real, generated, seed=settings.seed),
        seconds_per_step=drawn.seconds_per_step,
        seconds_per_image=drawn.seconds_per_image,
    )
    style, why = None, "no judge was asked"
    if judge is not None:
        real_look, generated_look = judge.look(real), judge.look(generated)
        style, why = judge.style_of(real_look)
        if style is not None:
            evaluation = _with_judgement(evaluation, judge, style, real_look, generated_look, examples)
        if settings.features == "judge" or (settings.features == "auto" and style is not None):
            evaluation = _with_features(evaluation, real_look.features, generated_look.features, examples, judge.name)
    if style is None:
        evaluation = replace(evaluation, reasons=evaluation.reasons | dict.fromkeys(_JUDGED, why))
    if source is not None:
        features = source.features(generated)
        evaluation = _with_features(evaluation, source.features(real), features, examples, source.name)
        if settings.features == "clip":
            score = source.text_score(features, [picture.prompt for picture in drawn.pictures])
            networks = evaluation.networks | {"text_score": source.name}
            evaluation = replace(evaluation, text_score=score, networks=networks)
    reasons = dict(evaluation.reasons)
    if "fid" not in evaluation.networks:
        unknown = f'features = "auto" takes the judge alone, and {why}' if settings.features == "auto" else why
        reasons |= dict.fromkeys(_OF_FEATURES, unknown)
    if evaluation.text_score is None:
        reasons["text_score"] = 'only features = "clip" can tell'
    if settings.drift_prompts is None:
        reasons["drift"] = "no drift_prompts were given"
    return replace(evaluation, reasons=reasons)


def _with_judgement(
    evaluation: Evaluation,
    judge: Judge,
    style: str,
    real: Look,
    generated: Look,
    examples: list[Example],
) -> Evaluation:
    """Style and concept of each picture, by the judge."""
    prompts = [picture.prompt for picture in evaluation.pictures]
    captions = [example.caption for example in examples]
    own = gallery_of(captions, real.embeddings)
    others = other_styles_gallery(judge, set(prompts), style)
    ranks = own.ranks(generated.embeddings, prompts)
    elsewhere = others.ranks(generated.embeddings, prompts) if others else [None] * len(prompts)
    scores = generated.styles[:, judge.styles.index(style)].tolist()
    pictures: list[Picture] = [
        replace(picture, style_score=score, concept_rank=rank, concept_rank_other_styles=other)
        for picture, score, rank, other in zip(evaluation.pictures, scores, ranks, elsewhere, strict=True)
    ]
    reasons = {}
    if mean_reciprocal(ranks) is None:
        reasons["concept_score"] = "the folder has no picture of any of the prompts"
    if mean_reciprocal(elsewhere) is None:
        reasons["concept_score_other_styles"] = "the bundled styles have no picture of any of the prompts"
    return replace(
        evaluation,
        pictures=tuple(pictures),
        style=style,
        style_score=sum(scores) / len(scores),
        style_score_real=float(real.styles[:, judge.styles.index(style)].mean()),
        style_shares=dict(zip(judge.styles, generated.styles.mean(dim=0).tolist(), strict=True)),
        concept_score=mean_reciprocal(ranks),
        concept_top1=share_within(ranks, 1),
        concept_top5=share_within(ranks, 5),
        concept_score_other_styles=mean_reciprocal(elsewhere),
        networks=evaluation.networks | dict.fromkeys(_JUDGED, judge.name),
        reasons=evaluation.reasons | reasons,
    )


def _with_drift(
    evaluation: Evaluation, both: _Pair | None, size: tuple[int, int], judge: Judge | None, source: Any
) -> Evaluation:
    """What pictures that have nothing to do with the adapter tell of it."""
    network = evaluation.networks.get("fid")
    if both is None or network is None:
        why = "the pipeline has no adapter to draw without" if both is None else evaluation.reasons["fid"]
        return replace(evaluation, reasons=evaluation.reasons | {"drift": why})

    def features(pictures: list[Image.Image]) -> Tensor:
        pixels = PixelSet(pictures, size)
        if source is not None:
            found: Tensor = source.features(pixels)
            return found
        assert judge is not None
        return judge.look(pixels).features

    drift = drift_of(*map(features, both))
    return replace(evaluation, drift=drift, networks=evaluation.networks | {"drift": network})


def _with_features(
    evaluation: Evaluation, real: Tensor, generated: Tensor, examples: list[Example], network: str
) -> Evaluation:
    """What the features of real and generated pictures tell."""
    from fera.features.distributions import diversity, frechet_distance, kernel_distance

    reasons = dict(evaluation.reasons)
    fid = kid = None
    if min(len(real), len(generated)) < 2:
        reasons |= dict.fromkeys(("fid", "kid"), "two real and two generated pictures are needed")
    else:
        fid, kid = frechet_distance(real, generated), kernel_distance(real, generated, seed=evaluation.settings.seed)
    prompts = [picture.prompt for picture in evaluation.pictures]
    alike = similarities(generated, prompts, real, [example.caption for example in examples])
    known = [value for value in alike if value is not None]
    if not known:
        reasons["similarity"] = "the folder has no picture of any of the prompts"
    within, between = diversity(generated, prompts)
    if within is None:
        reasons["diversity_within_prompt"] = "one picture a prompt; raise images_per_prompt"
    if between is None:
        reasons["diversity_between_prompts"] = "a single prompt"
    pictures: list[Picture] = [
        replace(picture, similarity=value) for picture, value in zip(evaluation.pictures, alike, strict=True)
    ]
    return replace(
        evaluation,
        pictures=tuple(pictures),
        fid=fid,
        kid=kid,
        similarity=sum(known) / len(known) if known else None,
        diversity_within_prompt=within,
        diversity_between_prompts=between,
        networks=evaluation.networks | dict.fromkeys(_OF_FEATURES, network),
        reasons=reasons,
    )


def _feature_source(settings: EvaluationSettings) -> Any:
    """A network other than the judge, loaded before any work is done that it could undo by failing."""
    from fera.features.networks import InceptionFeatures, load_clip, load_dinov2

    if settings.images_per_prompt == 0:
        return None
    if settings.features == "inception":
        return InceptionFeatures()
    if settings.features == "dinov2":
        return load_dinov2(settings.dinov2_model)
    return load_clip(settings.clip_model) if settings.features == "clip" else None


def _size(pipe: Any, settings: EvaluationSettings) -> tuple[int, int]:
    """Width and height of the pictures."""
    if getattr(pipe, "vae", None) is None:
        raise FeraError(f"{type(pipe).__name__} has no autoencoder, which an evaluation needs; load the whole pipeline")
    multiple, side = size_multiple(pipe), settings.resolution or native_resolution(pipe)
    if side % multiple:
        raise FeraError(f"resolution is {side}, but this base needs a multiple of {multiple}")
    return side, side


def _parts_to(pipe: Any, device: Any) -> None:
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.to(device)


def _save(evaluation: Evaluation, output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        evaluation.save(output / "evaluation.json")
    except OSError as error:
        raise FeraError(f"cannot write to {output}: {error.strerror or error}") from error


def _silent(what: str, done: int, total: int) -> None:
    """Nobody is told."""
