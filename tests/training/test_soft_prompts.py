"""Soft prompts in a run: what they start from, the phase in which they learn alone, and going on after a break."""

import pytest
import torch
from adapter_cases import draw
from pydantic import ValidationError
from safetensors.torch import load_file
from training_cases import assert_resumes, log_of, run_config, trained_weights

import fera
from fera.pipelines.base import load_base
from fera.training import train
from fera.training.step.optimizers import build_optimizer
from fera.training.trained.soft_prompt import start_from_captions

PROMPT = {"num_virtual_tokens": 4, "r": 2}


def tensors(config):
    held = load_file(config.output_dir / "adapter" / "adapter_model.safetensors")
    vectors = {key: held.pop(key) for key in list(held) if "soft_prompt" in key}
    return vectors, held


def configure(base, pictures, output, **train_settings):
    settings = {"soft_prompt_learning_rate": 0.1, "checkpointing_steps": 2} | train_settings
    return run_config(base, pictures, output, adapter=PROMPT, train=settings)


@pytest.mark.parametrize("cut", [2, 4])
def test_it_learns_alone_then_stays_and_a_run_goes_on_in_either_phase(tiny_sd_dir, image_folder, tmp_path, cut):
    """Six steps, the first three of which are the soft prompt's."""
    settings = {"soft_prompt_then_freeze": 0.5}
    configs = [configure(tiny_sd_dir, image_folder, tmp_path / name, **settings) for name in ("one", "two")]
    assert_resumes(*configs, cut, "loss", "soft_prompt_lr")
    (vectors,), experts = tensors(configs[0])[0].values(), tensors(configs[0])[1]
    assert vectors.shape == (4, 32) and any(tensor.any() for key, tensor in experts.items() if "experts_B" in key)
    first = configure(tiny_sd_dir, image_folder, tmp_path / "first", soft_prompt_then_freeze=1.0, steps=3)
    train(first)
    (alone,), untouched = tensors(first)[0].values(), tensors(first)[1]
    assert torch.equal(alone, vectors), "three steps alone, and as they were in the second phase"
    assert not any(tensor.any() for key, tensor in untouched.items() if "experts_B" in key)


def test_together_all_learn_and_the_adapter_loads_by_the_same_call(tiny_sd_dir, image_folder, tmp_path):
    config = configure(tiny_sd_dir, image_folder, tmp_path / "run")
    train(config)
    assert set(log_of(config, "soft_prompt_lr")) == {0.1}
    pipe, base = load_base(str(tiny_sd_dir)), load_base(str(tiny_sd_dir))
    fera.load_adapter(pipe, config.output_dir)
    assert not torch.allclose(draw(pipe), draw(base), atol=1e-4)
    fera.unload(pipe)
    assert torch.equal(draw(pipe), draw(base))


def test_it_starts_from_states_of_captions_with_no_decay(tiny_sd_dir, image_folder, tmp_path):
    from accelerate import Accelerator

    from fera.training.folder.run_folder import RunFolder
    from fera.training.start.prepare import prepare
    from fera.training.telling.reporter import Reporter
    from fera.training.trainer import Trainer

    config = configure(tiny_sd_dir, image_folder, tmp_path / "run")
    (tmp_path / "run").mkdir()
    with Reporter(tmp_path / "log.jsonl", is_main=True) as reporter:
        setup = prepare(config, torch.device("cpu"), reporter)
        states = torch.cat([setup.training.batch([row]).conditions["encoder_hidden_states"][0] for row in range(4)])
        (name,) = [name for name, _ in setup.denoiser.named_parameters() if "soft_prompt" in name]
        vectors = setup.denoiser.get_parameter(name)
        assert all(any(torch.equal(vector, state) for state in states) for vector in vectors.detach())
        again = vectors.detach().clone()
        start_from_captions(setup.denoiser, setup.training, config.seed)
        assert torch.equal(vectors, again), "the seed says which"
        optimizer = build_optimizer(config.train, setup.denoiser, setup.text_groups(config))
        groups = [group for group in optimizer.param_groups if any(one is vectors for one in group["params"])]
        assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.1, 0.0)]
        trainer = Trainer(config, RunFolder(tmp_path / "run"), Accelerator(), setup, reporter)
        before = trained_weights(trainer)
        trainer.advance()
        after = trained_weights(trainer)
        assert not torch.equal(before[name], after[name])


def test_it_learns_beside_text_encoders_that_train(tiny_sd_dir, image_folder, tmp_path):
    """Captions are not cached then: it starts small and random."""
    sections = {"text_encoder": {"train_text_encoder": True, "r": 2}}
    config = run_config(tiny_sd_dir, image_folder, tmp_path / "run", adapter=PROMPT, train={"steps": 2}, **sections)
    train(config)
    (vectors,), _ = tensors(config)[0].values(), None
    assert vectors.any() and vectors.std() < 0.1


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"soft_prompt_then_freeze": 0.5}}, "adapter.num_virtual_tokens is 0: set both or neither"),
        ({"train": {"soft_prompt_learning_rate": 0.5}}, "adapter.num_virtual_tokens is 0: set both or neither"),
        ({"adapter": PROMPT, "train": {"soft_prompt_then_freeze": 1.5}}, "less than or equal to 1"),
        ({"adapter": {"full": True, "num_virtual_tokens": 2}}, "leave adapter.num_virtual_tokens out"),
        (
            {"adapter": PROMPT, "train": {"optimizer": "prodigy", "learning_rate": 1.0}},
            "soft_prompt_learning_rate is 0.001, but Prodigy has one learning rate",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, sections, message):
    with pytest.raises(ValidationError, match=message):
        run_config(tmp_path, tmp_path, tmp_path / "run", **sections)
