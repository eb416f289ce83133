"""T5 and language models that train, by the command line: cut off, resumed, drawn, loaded into plain pipelines."""

import pytest
import torch
from safetensors.torch import load_file
from trained_calls import draw, pipe_of
from trained_cases import CASES
from training_cases import log_of, power_cut, run_config

import fera
from fera.adapters.text.encoders import ENCODER, text_encoders, tokenizer_for
from fera.adapters.text.tokens import learned_tokens
from fera.cli.main import main
from fera.models.families import family_of
from fera.training import to_toml, train

TOKEN = "<toy>"
PROMPT = f"a {TOKEN} rocket"
# One of T5 beside CLIP, of UMT5 for clips, of Gemma, of Qwen behind a template, of Qwen before its last layer, of Qwen
# in a processor. All others are slow.
FAST = {"flux", "wan", "sana", "qwen-image", "z-image", "qwen-image-2.1"}
# The tiny tokenizer writes the template out in so many tokens that no caption is left in what is read.
CUT = ("hunyuan-video", "text_encoder")
UNABLE = {"prx", "ernie-image", "longcat-image", "omnigen", "kolors"}


# Of this file: among plugins, one that another file names would take its place.
@pytest.fixture
def pipe(case, monkeypatch):
    return pipe_of(case, monkeypatch)


def runs():
    """Cases of captions alone; kolors learns no word, and is in another test."""
    for case in CASES:
        if not (case.variant or case.seconds or case.sources or case.given or case.name in UNABLE):
            yield pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case.name not in FAST))


def configure(case, pipe, image_folder, tmp_path, names, **sections):
    pipe.save_pretrained(tmp_path / "base")
    case.repair(tmp_path / "base")
    for path in image_folder.glob("*.txt"):
        path.write_text(f"{TOKEN}, {path.read_text().strip()}")
    data = {"resolution": max(case.height, case.width)} | ({"num_frames": [1]} if case.frames else {})
    return run_config(
        tmp_path / "base",
        image_folder,
        tmp_path / "run",
        data=data,
        train={"steps": 2, "checkpointing_steps": 1, "consistency_weight": 0.1, "gradient_checkpointing": False},
        adapter={"r": 2},
        text_encoder={"train_text_encoder": True, "encoders": names, "learning_rate": 1e-2, "r": 2},
        **sections,
    )


@pytest.mark.parametrize("case", runs())
def test_it_trains_resumes_draws_and_loads(pipe, case, image_folder, tmp_path):
    names = [name for name in family_of(pipe).text_components if ENCODER.fullmatch(name)]
    names = [name for name in names if name in text_encoders(pipe) and name not in family_of(pipe).untrained]
    learners = [name for name in names if (case.name, name) != CUT]
    tokens = {"placeholder_token": TOKEN, "initializer_token": "a", "encoders": learners, "learning_rate": 1e-2}
    validation = {"prompts": [PROMPT], "num_inference_steps": 2}
    config = configure(case, pipe, image_folder, tmp_path, names, tokens=tokens, validation=validation)
    (tmp_path / "run.toml").write_text(to_toml(config))
    with power_cut(1):
        train(config)
    assert main(["train", str(tmp_path / "run.toml"), "--resume"]) == 0
    assert log_of(config, "text_encoder_lr") == [1e-2] * 2 and log_of(config, "tokens_lr") == [1e-2] * 2
    assert len(list((tmp_path / "run" / "samples").glob("step-*.png"))) == 2

    adapter = tmp_path / "run" / "adapter"
    keys = load_file(adapter / "text_encoder_lora.safetensors").keys()
    assert {key.partition(".")[0] for key in keys} == set(names)
    plain, tokenizers = draw(pipe, case, prompt=PROMPT), {name: tokenizer_for(pipe, name) for name in names}
    fera.load_adapter(pipe, tmp_path / "run")
    assert not torch.equal(draw(pipe, case, prompt=PROMPT), plain)
    for name in learners:
        assert TOKEN in tokenizer_for(pipe, name).tokenize(PROMPT)
        file = adapter / f"learned_embeds{name.removeprefix('text_encoder')}.safetensors"
        embeddings, tokenizer = getattr(pipe, name).get_input_embeddings(), tokenizer_for(pipe, name)
        word = torch.tensor(tokenizer.encode("a", add_special_tokens=False)[-1:])
        row = load_file(file)[TOKEN]
        assert 0 < float((row - embeddings.weight[word]).abs().max()) < 0.03  # two steps of 0.01 from its word
        scale = getattr(embeddings.embedding, "embed_scale", 1)
        found = embeddings(torch.tensor([tokenizer.convert_tokens_to_ids(TOKEN)]))
        torch.testing.assert_close(found - embeddings(word), scale * (row - embeddings.weight[word]))
    fera.unload(pipe)
    assert all(tokenizer_for(pipe, name) is tokenizer for name, tokenizer in tokenizers.items())
    assert all(learned_tokens(getattr(pipe, name)) is None for name in names)
    assert torch.equal(draw(pipe, case, prompt=PROMPT), plain)
