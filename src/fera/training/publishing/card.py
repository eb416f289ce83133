"""The model card of an adapter: `README.md` in its folder, which the Hugging Face Hub shows.

Prompts and captions may come from strangers. They stand in code spans and in quoted YAML, where nothing of them acts.
No path of this machine is in a card.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from fera.adapters.file import AdapterFile
from fera.config import TrainConfig
from fera.config.keys import keys
from fera.config.reading import shareable_settings
from fera.pipelines.base import EMOJI, parted
from fera.support.files import replace_file, replace_text
from fera.training.summary import Summary

CARD = "README.md"
SAMPLES = "samples.png"
# Stands for the repository until the adapter is pushed to one.
REPOSITORY = "OWNER/NAME"

_ALWAYS_TOLD = (
    *("adapter.r", "adapter.num_experts", "adapter.num_bands", "adapter.router", "adapter.router_input"),
    *("train.steps", "train.batch_size", "train.learning_rate", "train.lr_scheduler", "train.consistency_weight"),
    *("train.mixed_precision", "seed"),
)
_PROMPT = "a rocket"
# Told elsewhere in the card, or of no interest to who uses the adapter.
_LEFT_OUT = (
    *("base", "revision", "variant", "license", "push_to_hub", "hub_", "validation."),
    *("train.report_to", "train.tracker", "train.logging", "train.checkpoint"),
    *("data.image_column", "data.caption_column", "adapter.kappa"),
)

_CITATION = """\
@misc{yin2025fera,
  title = {{FeRA}: Frequency-Energy Constrained Routing for Effective Diffusion Adaptation Fine-Tuning},
  author = {Yin and others},
  year = {2025},
  eprint = {2511.17979},
  archivePrefix = {arXiv},
}"""


def write_card(config: TrainConfig, summary: Summary, adapter: Path, samples: Path) -> None:
    """Write the card of a finished run into its adapter's folder, and the last validation pictures beside it.

    Args:
        config: the configuration of the run.
        summary: the summary of the run.
        adapter: the folder.
        samples: folder of the validation pictures, `step-000100.png` and so on; need not exist.
    """
    drawn = sorted(samples.glob("step-*.png"))
    if drawn:
        replace_file(adapter / SAMPLES, lambda file: shutil.copyfile(drawn[-1], file))
    replace_text(adapter / CARD, run_card(config, summary, has_samples=bool(drawn)))


def run_card(config: TrainConfig, summary: Summary, *, has_samples: bool = False) -> str:
    """The card of a finished run.

    Args:
        config: the configuration of the run.
        summary: the summary of the run.
        has_samples: whether `SAMPLES` lies beside the card.
    """
    base = _public_base(config.base)
    prompts = config.validation.prompts if has_samples else []
    name = one_line(re.sub(r"[^\w .-]", "-", config.output_dir.resolve().name))
    sections = [
        _metadata(_kind(config), base, config.license, config.data.instance_prompt, prompts),
        f"# {code_span(name)}",
        _what(config, summary, base),
        _samples(config) if has_samples else "",
        _use(
            _kind(config),
            base,
            config.revision,
            _call(config),
            plain_lora=config.adapter.expert is None or config.adapter.is_confined,
        ),
        _training(config, summary),
        _settings(_told_settings(config, summary.kappa)),
        _ending(summary.versions, config.license),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def adapter_card(file: AdapterFile) -> str:
    """The card of a routed adapter that nothing is known of but its file."""
    config = file.config
    base = _public_base(config.base_model_name_or_path or "")
    names = ("r", "num_experts", "num_bands", "chosen_kappa", "router", "router_input", "temperature")
    settings = {name.removeprefix("chosen_"): getattr(config, name) for name in names}
    sections = [
        _metadata("routed", base, None, None, []),
        "# FeRA adapter",
        _routed_words(config.num_experts, config.r, config.num_bands, None, config.ranks, config.router) + ".",
        _use("routed", base, None, repr(_PROMPT), plain_lora=config.expert is None),
        _settings(settings),
        _ending(file.versions, None),
    ]
    return "\n\n".join(sections) + "\n"


def one_line(text: str) -> str:
    """A text without line breaks, control characters and marks that turn the direction of writing."""
    kept = "".join(" " if letter.isspace() else letter for letter in text)
    kept = re.sub("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "", kept)
    return " ".join(kept.split())


def code_span(text: str, *, in_table: bool = False) -> str:
    """A text as Markdown code: no markup, link or HTML in it acts.

    Args:
        text: any.
        in_table: also keep it in its cell.
    """
    text = one_line(text) or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    span = f"{fence}{padding}{text}{padding}{fence}"
    return span.replace("|", "\\|") if in_table else span


def _kind(config: TrainConfig) -> str:
    return "full" if config.adapter.full else "routed" if config.adapter.is_routed else "plain"


def _public_base(base: str) -> str | None:
    """A base that others can have: a Hub id, or the one that comes with fera; None for a folder of this machine."""
    if base == EMOJI:
        return base
    base, _ = parted(base)
    is_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) and not Path(base).exists()
    return base if is_id else None


def _metadata(
    kind: str, base: str | None, license: str | None, instance_prompt: str | None, prompts: Sequence[str]
) -> str:
    # What the Hub's button "use this model" would show for peft and diffusers does not load a routed adapter.
    library = {"routed": "fera", "plain": "peft", "full": "diffusers"}[kind]
    told: dict[str, Any] = {
        "base_model_relation": "finetune" if kind == "full" else "adapter",
        "instance_prompt": one_line(instance_prompt) if instance_prompt else None,
        "widget": [{"text": one_line(" · ".join(prompts)), "output": {"url": SAMPLES}}] if prompts else None,
    }
    if base in (None, EMOJI):
        del told["base_model_relation"]
    data = ModelCardData(
        base_model=None if base == EMOJI else base,
        library_name=library,
        license=license,
        pipeline_tag="text-to-image",
        tags=["text-to-image", "diffusers", *(["fera"] if kind == "routed" else [])],
        **told,
    )
    return f"---\n{data.to_yaml()}\n---"


def _what(config: TrainConfig, summary: Summary, base: str | None) -> str:
    adapter = config.adapter
    if adapter.full:
        words = "All weights of the denoiser, fine-tuned"
    elif adapter.plain is not None:
        words = f"A plain {code_span(str(adapter.plain.get('peft_type')))} adapter of PEFT"
    else:
        scheme = None if adapter.expert is None else str(adapter.expert.get("peft_type"))
        words = _routed_words(adapter.num_experts, adapter.r, adapter.num_bands, scheme, adapter.ranks, adapter.router)
    where = {None: "a base that is no public one", EMOJI: "the emoji base that comes with fera"}.get(
        base, f"[{base}](https://huggingface.co/{base})"
    )
    return f"{words}; {summary.parameters:,} trained parameters, for {where}."


def _routed_words(
    experts: int, rank: int, bands: int, scheme: str | None, ranks: Sequence[int] | None, router: str
) -> str:
    if router == "gradient":
        each = f"ranks {', '.join(map(str, ranks))}" if ranks else f"rank {rank}"
        return (
            f"A LoRA of {len(ranks or range(experts))} experts of {each}, which all act alike; its training routed the "
            "optimizer's steps between them ([MoLF](https://arxiv.org/abs/2605.07111))"
        )
    kind = f"LoRA experts of rank {rank}" if scheme is None else f"{code_span(scheme)} experts"
    return (
        f"A routed adapter: {experts} {kind}, mixed at every denoising step by how the energy of the latent is spread "
        f"over {bands} frequency bands ([FeRA](https://arxiv.org/abs/2511.17979))"
    )


def _samples(config: TrainConfig) -> str:
    settings = config.validation
    prompts = "\n".join(f"- {code_span(prompt)}" for prompt in settings.prompts)
    negative = f", negative prompt {code_span(settings.negative_prompt)}" if settings.negative_prompt else ""
    return (
        f"## Samples\n\n![Validation pictures after the last step]({SAMPLES})\n\n"
        f"{settings.num_inference_steps} denoising steps, guidance {settings.guidance_scale:g}, seeds from "
        f"{settings.seed}{negative}. In the order of the pictures:\n\n{prompts}"
    )


def _use(kind: str, base: str | None, revision: str | None, call: str, *, plain_lora: bool) -> str:
    place = "fera.demo.base_path()" if base == EMOJI else repr(base or "path/to/the/base")
    at = f", revision={revision!r}" if revision and base not in (None, EMOJI) else ""
    imports = ["from diffusers import DiffusionPipeline"]
    if kind == "routed" or base == EMOJI:
        imports.insert(0, "import fera")
    if kind == "plain":
        imports.append("from peft import PeftModel")
    denoiser = ['denoiser = getattr(pipe, "unet", None) or pipe.transformer']
    load = {
        "routed": [f'fera.load_adapter(pipe, "{REPOSITORY}")'],
        "plain": [*denoiser, f'PeftModel.from_pretrained(denoiser, "{REPOSITORY}")  # changes it in place'],
        "full": [*denoiser, f'trained = type(denoiser).from_pretrained("{REPOSITORY}")']
        + ["denoiser.load_state_dict(trained.state_dict())"],
    }[kind]
    draw = f"image = pipe({call}).images[0]"
    code = [*imports, "", f"pipe = DiffusionPipeline.from_pretrained({place}{at})", *load, draw]
    text = "## Use\n\n```python\n" + "\n".join(code) + "\n```"
    if kind == "routed" and plain_lora:
        text += (
            "\n\nIts mixture follows the latent, so no plain LoRA equals it. Tools without fera can have an "
            f"approximation:\n\n```bash\nfera export {REPOSITORY} --format diffusers --gate uniform --output "
            "lora.safetensors\n```\n\nIn ComfyUI fera's own node, Load FeRA adapter, draws with the adapter as it is. "
            "Its file is none for loaders of LoRAs, there or elsewhere: they find no layer in it and change nothing."
        )
    return text


def _call(config: TrainConfig) -> str:
    """How the first sample is drawn, but for its seed."""
    settings = config.validation
    prompt = one_line(settings.prompts[0]) if settings.prompts else _PROMPT
    return f"{prompt!r}, num_inference_steps={settings.num_inference_steps}, guidance_scale={settings.guidance_scale}"


def _training(config: TrainConfig, summary: Summary) -> str:
    data, settings = config.data, config.train
    size = f"{data.resolution} x {data.resolution} pixels" if data.resolution else "the base's own size"
    shape = "in several aspects, each of about the area of" if data.enable_bucket else "at"
    facts = [f"{summary.training_pictures:,} pictures an epoch, {shape} {size}; {summary.samples:,} samples in all."]
    if data.instance_prompt:
        facts.append(f"Pictures without a caption of their own: {code_span(data.instance_prompt)}.")
    if data.trigger_word:
        facts.append(f"Trigger word, in every caption: {code_span(data.trigger_word)}.")
    if data.shuffle_caption:
        facts.append("The tags of a caption came in several orders.")
    if settings.caption_dropout:
        facts.append(f"{settings.caption_dropout:.0%} of the captions were left out.")
    if data.random_flip:
        facts.append("Half of the pictures were mirrored.")
    if data.mask_path or data.alpha_mask:
        facts.append("The loss counted where masks say so.")
    if data.class_data_dir:
        prompt = f": {code_span(data.class_prompt)}" if data.class_prompt else ""
        facts.append(f"Half of what was seen were class pictures, which keep the base as it is{prompt}.")
    before, after = summary.held_out_loss_before, summary.held_out_loss_after
    if before is not None and after is not None:
        facts.append(f"Loss on pictures held out: {before:.4f} before, {after:.4f} after, at the same noise.")
    return "## Training\n\n" + "\n".join(f"- {fact}" for fact in facts)


def _told_settings(config: TrainConfig, kappa: float | None) -> dict[str, Any]:
    """Settings that differ from fera's defaults, and those that everybody asks for."""
    defaults = {key.name: key.field.get_default(call_default_factory=True) for key in keys()}
    told = {
        name: value
        for name, value in shareable_settings(config).items()
        if (name in _ALWAYS_TOLD and (config.adapter.is_routed or not name.startswith("adapter.")))
        or (value != defaults[name] and not name.startswith(_LEFT_OUT))
    }
    return told if kappa is None else told | {"adapter.kappa": round(kappa, 6)}


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [
        f"| {code_span(name)} | {code_span(json.dumps(value, ensure_ascii=False), in_table=True)} |"
        for name, value in settings.items()
    ]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _ending(versions: Mapping[str, str], license: str | None) -> str:
    parts = []
    if versions:
        parts.append(
            "Made with " + ", ".join(f"{name} {code_span(version)}" for name, version in versions.items()) + "."
        )
    own = f"Licence of the adapter: {code_span(license)}. " if license else ""
    parts.append(f"{own}The base has a licence of its own.")
    parts.append(f"## Citation\n\n```bibtex\n{_CITATION}\n```")
    return "\n\n".join(parts)
