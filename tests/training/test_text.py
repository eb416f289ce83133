"""Text encoders and learned tokens that train beside the denoiser's experts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from adapter_cases import bits
from cache_cases import entries
from pydantic import ValidationError
from safetensors.torch import load_file
from text_cases import KINDS, TOKEN, make_pipeline
from training_cases import assert_resumes, log_of, run_config

import fera
from fera import FeraError
from fera.adapters.text.encoders import text_encoders
from fera.adapters.text.kinds import CLIP, kind_of
from fera.adapters.text.lora import lora_layers
from fera.format import TEXT_LORA as LORA
from fera.generation import generate
from fera.models.components import denoisers
from fera.models.families import family_of
from fera.pipelines.base import load_base
from fera.preflight.data_check import examine
from fera.training import TrainConfig, load_config, to_toml, train
from fera.training.folder.run_folder import RunFolder
from fera.training.start.prepare import prepare
from fera.training.telling.reporter import Reporter
from fera.training.trained.text import TextTraining
from fera.training.trainer import Trainer

TEXT = {
    "text_encoder": {"train_text_encoder": True, "learning_rate": 1e-2, "r": 2},
    "tokens": {"placeholder_token": TOKEN, "initializer_token": "cat", "learning_rate": 1e-2},
    "data": {"trigger_word": TOKEN},
}
PAGES = Path(__file__).parents[2] / "docs"
FILES = ("adapter_model.safetensors", LORA, "learned_embeds.safetensors")


@pytest.fixture
def configure(tiny_sd_dir, image_folder, tmp_path):
    """Factory of small configurations that train text: `configure("name", tokens={...})`."""

    def make(name="run", base=tiny_sd_dir, **sections):
        merged = {key: TEXT.get(key, {}) | sections.get(key, {}) for key in TEXT | sections}
        return run_config(base, image_folder, tmp_path / name, **merged)

    return make


def trainer_of(config: TrainConfig) -> Trainer:
    """A run before its first step."""
    config.output_dir.mkdir(parents=True, exist_ok=True)
    accelerator, run = Accelerator(), RunFolder(config.output_dir)
    reporter = Reporter(run.log, is_main=True)
    return Trainer(config, run, accelerator, prepare(config, accelerator.device, reporter), reporter)


def weights_of(config: TrainConfig) -> dict[str, torch.Tensor]:
    return {
        f"{file}:{key}": tensor
        for file in FILES
        for key, tensor in load_file(config.output_dir / "adapter" / file).items()
    }


# What it learns


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind, image_folder, tmp_path):
    pipe = make_pipeline(kind).to(torch.float64)
    family, device = family_of(pipe), torch.device("cpu")
    captions = [f"a {TOKEN} rocket", "a green tree", f"a {TOKEN} rocket"]
    with torch.no_grad():
        cached = family.encode(pipe, captions, device) if family.encode_part else {}
    text = TextTraining(pipe, family, run_config("b", image_folder, tmp_path, **TEXT), device)
    assert text.names == tuple(name for name in text_encoders(pipe) if kind_of(getattr(pipe, name)) is CLIP)
    generator = torch.Generator().manual_seed(0)
    for parameter in text.parameters:
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = parameter.data.double() + 0.1 * noise
    denoiser = next(iter(denoisers(pipe).values()))
    denoiser.requires_grad_(False)
    noisy = torch.randn(3, 4, 8, 8, generator=generator, dtype=torch.float64)

    def loss():
        conditions = text.encode(captions, cached)
        return family.predict(denoiser, noisy, torch.tensor([100.0, 500.0, 900.0]), conditions).square().mean()

    loss().backward()
    learned = [parameter for parameter in text.parameters if parameter.grad is not None]
    # SDXL's first encoder is read before its last layer, FLUX's and SD3's pooled output sees all of them.
    assert len(learned) >= len(text.parameters) - 8
    ways = [torch.randn(parameter.shape, generator=generator, dtype=torch.float64) for parameter in learned]
    for chosen in (slice(None), slice(-1, None)):  # all of them, and the token's vector alone
        slope = sum((parameter.grad * way).sum() for parameter, way in zip(learned[chosen], ways[chosen], strict=True))
        losses = []
        for step in (1e-4, -2e-4, 1e-4):  # above, below, and back
            with torch.no_grad():
                for parameter, way in zip(learned[chosen], ways[chosen], strict=True):
                    parameter += step * way
                losses.append(loss())
        # Some parts compute in float32 whatever they are given.
        torch.testing.assert_close((losses[0] - losses[1]) / 2e-4, slope, rtol=1e-3, atol=1e-6)


def test_only_what_is_meant_to_changes(configure):
    trainer = trainer_of(configure())
    setup = trainer._setup
    encoder = setup.pipe.text_encoder
    before, first = bits(encoder), [parameter.detach().clone() for parameter in setup.text.parameters]
    for _ in range(3):
        trainer.advance()
    changed = {name for name, tensor in bits(encoder).items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".lora_" in name or ".rows." in name}
    assert all(not torch.equal(old, new) for old, new in zip(first, setup.text.parameters, strict=True))
    assert len(lora_layers(encoder, "default")) == 8


def test_a_token_alone_learns(configure, image_folder):
    config = configure(
        text_encoder={"train_text_encoder": False, "learning_rate": 5e-5, "r": 4},
        data=TEXT["data"] | {"validation_data_dir": image_folder},
        train={"steps": 16, "batch_size": 4, "learning_rate": 1e-9},
        tokens={"learning_rate": 0.1, "num_vectors": 3},
        validation={"loss_samples": 16},
    )
    summary = train(config)
    assert summary.held_out_loss_after < summary.held_out_loss_before
    assert sorted(path.name for path in (config.output_dir / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "learned_embeds.safetensors",
    ]
    rows = load_file(config.output_dir / "adapter" / "learned_embeds.safetensors")[TOKEN]
    assert rows.shape == (3, 32) and not torch.equal(rows[0], rows[1])


def test_the_token_starts_from_its_word_without_decay(configure):
    trainer = trainer_of(configure())
    pipe = trainer._setup.pipe
    ids = pipe.tokenizer(f"{TOKEN} cat", return_tensors="pt").input_ids
    start, word = pipe.text_encoder.get_input_embeddings()(ids)[0, 1:3]
    assert torch.equal(start, word)
    groups = {group.get("name"): group for group in trainer._optimizer.param_groups}
    assert groups["tokens"]["weight_decay"] == 0 and groups["tokens"]["lr"] == 1e-2
    assert groups["text_encoder"]["weight_decay"] == 0.01


def test_pivotal_tuning_leaves_the_token_after_its_share(configure):
    config = configure(tokens={"train_frac": 0.5})
    trainer = trainer_of(config)
    rows, loras = trainer._setup.text._rows, trainer._setup.text._loras
    moved = []
    for _ in range(6):
        before = [rows[0].clone(), loras[0].clone()]
        trainer.advance()
        moved.append([not torch.equal(*pair) for pair in zip(before, (rows[0], loras[0]), strict=True)])
    assert moved == [[True, True]] * 3 + [[False, True]] * 3
    assert log_of(config, "tokens_lr") == [1e-2] * 3 + [0.0] * 3
    assert log_of(config, "text_encoder_lr") == [1e-2] * 6
    assert log_of(config, "lr") == [1e-2] * 6 and log_of(config, "router_lr") == [1e-3] * 6


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_gradient_checkpointing_changes_nothing(kind, configure, tmp_path):
    make_pipeline(kind).save_pretrained(tmp_path / kind)
    gradients = []
    for checkpointing in (False, True):
        config = configure(f"run-{checkpointing}", tmp_path / kind, train={"gradient_checkpointing": checkpointing})
        trainer = trainer_of(config)
        assert any(m.training for m in trainer._setup.pipe.text_encoder.modules())
        trainer._loss(0).backward()
        gradients.append([parameter.grad for parameter in trainer._setup.text.parameters])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-4, atol=1e-7)


def test_what_captions_are_encoded(configure, monkeypatch, tmp_path):
    """Trigger word, orders of tags, dropped captions and class pictures are as without training text."""
    seen = []
    encode = TextTraining.encode
    monkeypatch.setattr(
        TextTraining, "encode", lambda self, captions, cached: seen.extend(captions) or encode(self, captions, cached)
    )
    folder = tmp_path / "pictures"
    for path in folder.glob("*.txt"):
        path.write_text("tree, house, cat")
    data = {"shuffle_caption": True, "class_data_dir": tmp_path / "class", "class_prompt": "a blue house"}
    config = configure(
        data=TEXT["data"] | data | {"num_class_images": 2},
        train={"caption_dropout": 0.3, "steps": 12},
        validation={"num_inference_steps": 1},
    )
    train(config)
    kinds = {caption for caption in seen if caption not in ("", "a blue house")}
    assert {"", "a blue house"} <= set(seen)
    assert len(kinds) > 2 and all(caption.startswith(f"{TOKEN}, ") for caption in kinds)
    assert not entries(tmp_path / "cache", "text"), "no embedding is kept that training makes old"


# Runs


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_trains_draws_and_loads(kind, configure, tmp_path):
    make_pipeline(kind).save_pretrained(tmp_path / kind)
    config = configure(
        base=tmp_path / kind,
        data=TEXT["data"] | {"validation_fraction": 0.25, "resolution": 16},
        train={"steps": 2, "batch_size": 3},
        validation={"prompts": [f"a {TOKEN} house"], "num_inference_steps": 2, "guidance_scale": 1.0},
    )
    summary = train(config)
    pipe = load_base(str(tmp_path / kind))
    base = generate(pipe, [f"a {TOKEN} house"], num_inference_steps=2, guidance_scale=1.0, height=16, width=16)
    fera.load_adapter(pipe, config.output_dir)
    count = sum(
        parameter.numel()
        for module in (next(iter(denoisers(pipe).values())), *text_encoders(pipe).values())
        for name, parameter in module.named_parameters()
        if ".lora_" in name or "fera.router" in name or ".rows." in name
    )
    assert summary.parameters == count
    drawn = generate(pipe, [f"a {TOKEN} house"], num_inference_steps=2, guidance_scale=1.0, height=16, width=16)
    assert drawn[0].tobytes() != base[0].tobytes()
    from PIL import Image

    from fera.generation.grids import prompt_grid

    grid = prompt_grid({"step 2": drawn}, [f"a {TOKEN} house"])
    with Image.open(config.output_dir / "samples" / "step-000002.png") as preview:
        assert preview.tobytes() == grid.tobytes(), "a preview is what the adapter draws later"


def test_held_out_loss_is_that_of_the_finished_adapter(configure, image_folder):
    from fera.evaluation import EvaluationSettings, evaluate

    config = configure(data=TEXT["data"] | {"validation_data_dir": image_folder}, validation={"loss_samples": 8})
    summary = train(config)
    for path in image_folder.glob("*.txt"):
        path.write_text(f"{TOKEN}, {path.read_text().strip()}")
    pipe = load_base(config.base)
    fera.load_adapter(pipe, config.output_dir)
    settings = EvaluationSettings(loss_samples=8, images_per_prompt=0)
    cache = image_folder.parent / "cache"
    full = evaluate(pipe, image_folder, settings, cache=cache).loss
    assert full == pytest.approx(summary.held_out_loss_after, rel=1e-5)
    fera.set_adapters(pipe, "default", 0.5)
    assert evaluate(pipe, image_folder, settings, cache=cache).loss != full
    fera.set_adapters(pipe, "default", 1.0)
    assert evaluate(pipe, image_folder, settings, cache=cache).loss == full


def test_resumed_run_equals_an_uninterrupted_one(configure):
    sections = {
        "data": TEXT["data"] | {"shuffle_caption": True, "random_flip": True, "validation_fraction": 0.25},
        "tokens": {"train_frac": 0.7, "num_vectors": 2},
        "adapter": {"lora_dropout": 0.3},
        "train": {"caption_dropout": 0.3, "gradient_accumulation_steps": 2, "checkpointing_steps": 3},
    }
    straight, stopped = configure("straight", **sections), configure("stopped", **sections)
    assert_resumes(straight, stopped, 4, "loss", "held_out_loss", "tokens_lr", "text_encoder_lr")


def test_mixed_precision(configure):
    config = configure(train={"mixed_precision": "bf16", "steps": 3}, data=TEXT["data"] | {"validation_fraction": 0.25})
    summary = train(config)
    weights = weights_of(config)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert summary.held_out_loss_after < 10
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_the_example_of_the_page_trains(tiny_sd_dir, image_folder, tmp_path):
    examples = re.findall(r"^```toml\n(.*?)^```$", (PAGES / "text.md").read_text(encoding="utf-8"), flags=re.M | re.S)
    (text,) = [example for example in examples if "[tokens]" in example]
    (tmp_path / "toy.toml").write_text(text, encoding="utf-8")
    small = {"base": tiny_sd_dir, "output_dir": tmp_path / "toy", "data.train_data_dir": image_folder, "train.steps": 2}
    few = {"validation.num_inference_steps": 1, "train.batch_size": 2, "train.logging_steps": 1}
    config = load_config(tmp_path / "toy.toml", {key: str(value) for key, value in (small | few).items()})
    train(config)
    assert log_of(config, "tokens_lr") == [5e-4, 0.0] and log_of(config, "text_encoder_lr") == [5e-5] * 2
    assert set(FILES) < {path.name for path in (config.output_dir / "adapter").iterdir()}


def test_without_it_a_run_is_as_before(tiny_sd_dir, image_folder, tmp_path):
    config = run_config(tiny_sd_dir, image_folder, tmp_path / "plain", train={"steps": 1})
    train(config)
    assert sorted(path.name for path in (config.output_dir / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert not log_of(config, "tokens_lr") and not log_of(config, "text_encoder_lr")


@pytest.mark.slow
def test_two_processes_equal_one_of_twice_the_batch(configure, tmp_path):
    settings = {"steps": 2, "learning_rate": 1e-3, "max_grad_norm": 1e6}
    one, both = configure("one", train=settings | {"batch_size": 4}), configure("both", train=settings)
    train(one)
    (tmp_path / "both.toml").write_text(to_toml(both), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launch, "-m", "fera.cli", "train", str(tmp_path / "both.toml")]
    subprocess.run(command, check=True, env=environment, timeout=900)
    first, second = weights_of(one), weights_of(both)
    pipe = load_base(one.base)
    word = pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer.encode("cat")[1]]
    # Adam turns rounding in tiny gradients into steps of its own, so compare directions.
    for kind, start in (("lora_B", 0.0), (TOKEN, word)):
        moves = [
            torch.cat(
                [(weights[key] - start).flatten() for key in weights if kind in key and "adapter_model" not in key]
            )
            for weights in (first, second)
        ]
        assert torch.nn.functional.cosine_similarity(*moves, dim=0) > 0.99, kind


def test_data_check_counts_and_warns(configure):
    config = configure()
    trainer = trainer_of(config)
    report = examine(config, with_base=True)
    assert not report.problems and report.estimates.trained_parameters == trainer._setup.parameters
    (problem,) = examine(configure(data={"trigger_word": "moon"}), with_base=True).problems
    assert "no caption has tokens.placeholder_token" in problem


# Refusals


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"tokens": {"placeholder_token": "cat</w>"}}, "has a token 'cat</w>' already"),
        ({"tokens": {"placeholder_token": "<Toy>"}}, "use lower case"),
        ({"tokens": {"initializer_token": "zebra"}}, r"'zebra' is 5 tokens \(z e b r a</w>\)"),
        ({"tokens": {"num_vectors": 15}}, "text_encoder takes 16 tokens"),
        ({"data": {"trigger_word": "moon"}}, "no caption has tokens.placeholder_token, '<toy>'"),
        ({"text_encoder": {"target_modules": ["to_q"]}}, "cannot put a LoRA into a CLIPTextModel"),
    ],
)
def test_what_does_not_fit_the_base_is_refused(configure, sections, message):
    with pytest.raises(FeraError, match=message):
        train(configure(**sections))


def test_several_vectors_need_a_pipeline_that_writes_them_out(configure, tmp_path):
    make_pipeline("sd3").save_pretrained(tmp_path / "sd3")
    with pytest.raises(FeraError, match="num_vectors is 2, but a StableDiffusion3Pipeline does not"):
        train(configure(base=tmp_path / "sd3", tokens={"num_vectors": 2}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"text_encoder": {"r": 8}}, "text_encoder.r is set, but text_encoder.train_text_encoder is not"),
        ({"tokens": {"num_vectors": 2}}, "tokens.num_vectors is set, but tokens.placeholder_token is not"),
        ({"tokens": {"placeholder_token": "<toy>"}}, "needs tokens.initializer_token"),
        ({"tokens": {"placeholder_token": "my toy", "initializer_token": "a"}}, "placeholder_token"),
        ({"adapter": {"plain": {"peft_type": "LORA"}}, "text_encoder": {"train_text_encoder": True}}, "a baseline is"),
    ],
)
def test_settings_that_cannot_work(image_folder, tmp_path, sections, message):
    with pytest.raises(ValidationError, match=message):
        run_config("b", image_folder, tmp_path, **sections)
