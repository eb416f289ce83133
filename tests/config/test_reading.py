import re
from pathlib import Path

import pytest

from fera import FeraConfig, FeraError
from fera.cli.main import main
from fera.config.foreign_keys import _WORDS
from fera.config.keys import keys
from fera.config.reference import to_markdown
from fera.training import AdapterConfig, DataConfig, OptimizationConfig, TrainConfig, load_config, to_toml

MINIMAL = 'base = "b"\noutput_dir = "out"\n[data]\ntrain_data_dir = "pictures"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def error(tmp_path: Path, text: str, flags: dict | None = None) -> str:
    with pytest.raises(FeraError) as caught:
        load_config(write(tmp_path, text), flags)
    return str(caught.value)


def test_toml_gives_typed_values(tmp_path):
    config = load_config(
        write(tmp_path, MINIMAL + '[train]\nsteps = 7\nlearning_rate = 1\n[validation]\nprompts = ["a", "b"]\n')
    )
    assert config.data.train_data_dir == Path("pictures")
    assert config.train.steps == 7
    assert config.train.learning_rate == 1.0 and isinstance(config.train.learning_rate, float)
    assert config.validation.prompts == ["a", "b"]
    assert config.revision is None


def test_flags_win_and_are_typed(tmp_path):
    flags = {
        "train.steps": "3",
        "data.skip_bad": "true",
        "data.random_flip": "False",
        "train.learning_rate": "1e-3",
        "adapter.target_modules": ["to_q", "to_v"],
        "train.snr_gamma": "none",
        "data.validation_data_dir": "val",
    }
    config = load_config(write(tmp_path, MINIMAL + "[train]\nsteps = 7\nsnr_gamma = 5.0\n"), flags)
    assert (config.train.steps, config.data.skip_bad, config.data.random_flip) == (3, True, False)
    assert config.train.learning_rate == 1e-3
    assert config.adapter.target_modules == ["to_q", "to_v"]
    assert config.train.snr_gamma is None
    assert config.data.validation_data_dir == Path("val")


def test_flags_alone_are_enough():
    config = load_config(None, {"base": "b", "output_dir": "out", "data.train_data_dir": "d"})
    assert config.base == "b"


def test_resolved_toml_reads_back_equal(tmp_path):
    config = TrainConfig(
        base='odd "name" \\ é 🚀',
        output_dir=Path("out"),
        data=DataConfig(train_data_dir=Path("d"), random_flip=True),
        adapter=AdapterConfig(
            target_modules=["to_q"], kappa=0.1, rank_pattern={"to_out.0": 2}, alpha_pattern={"*.é": 3.0}
        ),
        train=OptimizationConfig(learning_rate=1e-5, adam_epsilon=1e-30),
        validation={"prompts": ["line\nbreak", "tab\t\x7f"]},
    )
    assert load_config(write(tmp_path, to_toml(config))) == config


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("[train]\nstepz = 3\n", "'train.steps'"),
        ("[trian]\nsteps = 3\n", "'train'"),
        ("[train]\nnum_experts = 3\n", "'adapter.num_experts'"),
        ("[train]\nquite_another_thing = 3\n", None),
    ],
)
def test_unknown_key_names_the_nearest(tmp_path, text, nearest):
    message = error(tmp_path, MINIMAL + text)
    assert "unknown key" in message and "run.toml" in message
    if nearest:
        assert f"did you mean {nearest}?" in message


def test_unknown_key_at_the_top_may_lack_its_section(tmp_path):
    assert "did you mean 'train.steps'?" in error(tmp_path, "steps = 3\n" + MINIMAL)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("instance_data_dir", "did you mean 'data.train_data_dir'?"),
        ("pretrained_model_name_or_path", "did you mean 'base'?"),
        ("max_train_steps", "did you mean 'train.steps'?"),
        ("train_batch_size", "did you mean 'train.batch_size'?"),
        ("rank", "did you mean 'adapter.r'?"),
        ("report_to", "did you mean 'train.report_to'?"),
        ("dataset_name", "did you mean 'data.dataset_name'?"),
        ("validation_prompt", "did you mean 'validation.prompts'?"),
        ("use_8bit_adam", 'set train.optimizer = "adamw8bit"'),
        ("resume_from_checkpoint", "--resume goes on from the last checkpoint"),
        ("with_prior_preservation", "data.class_data_dir turns prior preservation on"),
        ("network_dim", "did you mean 'adapter.r'?"),
        ("network_alpha", "did you mean 'adapter.lora_alpha'?"),
        ("unet_lr", "did you mean 'train.learning_rate'?"),
        ("text_encoder_lr", "did you mean 'text_encoder.learning_rate'?"),
        ("train_data_dir", "did you mean 'data.train_data_dir'?"),
        ("reg_data_dir", "did you mean 'data.class_data_dir'?"),
        ("enable_bucket", "did you mean 'data.enable_bucket'?"),
        ("min_snr_gamma", "did you mean 'train.snr_gamma'?"),
        ("max_train_epochs", "train.steps counts optimizer steps"),
    ],
)
def test_words_of_other_trainers(tmp_path, capsys, name, word):
    assert word in error(tmp_path, f"{name} = 3\n" + MINIMAL)
    assert word in error(tmp_path, MINIMAL + f"[train]\n{name} = 3\n") or name == "report_to"
    assert main(["train", f"--{name}", "3"]) == 2
    told = capsys.readouterr().err
    assert re.sub(r"'(.*)'", r"--\1", word) in told and f"unknown option --{name}" in told


def test_several_words_of_other_trainers_are_told_at_once(capsys):
    flags = ["--instance-data-dir=x", "--rank", "8", "--output_dirr", "y"]
    assert main(["train", *flags]) == 2
    told = capsys.readouterr().err
    for word in ("--data.train_data_dir", "--adapter.r?", "--output_dir?"):
        assert f"did you mean {word}" in told
    assert main(["generate", "--rank", "8"]) == 2
    assert "adapter.r" not in capsys.readouterr().err


def test_words_of_other_trainers_lead_to_keys():
    known = {key.name for key in keys()}
    own = {name.rpartition(".")[2] for name in known}
    for name, word in _WORDS.items():
        assert name not in own, f"{name} is a key of fera's"
        if " " not in word:
            assert word in known, name
        for mentioned in re.findall(r"\b(?:data|train|adapter|validation|text_encoder|tokens)\.\w+", word):
            assert mentioned in known, name


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('steps = "500"', 'train.steps = "500": expected integer, at least 1'),
        ("steps = 2.5", "train.steps = 2.5: expected integer"),
        ("steps = 0", "train.steps = 0: expected integer, at least 1"),
        ("steps = true", "train.steps = true: expected integer"),
        ('gradient_checkpointing = "False"', "expected true or false"),
        ("gradient_checkpointing = 1", "expected true or false"),
        ("learning_rate = nan", "train.learning_rate = nan: expected number, above 0"),
        ("learning_rate = -1", "expected number, above 0"),
        ('lr_scheduler = "cosin"', "expected one of constant, constant_with_warmup, linear, cosine"),
        ("caption_dropout = 1.5", "at most 1"),
    ],
)
def test_wrong_type_or_range_is_one_line(tmp_path, line, expected):
    message = error(tmp_path, MINIMAL + f"[train]\n{line}\n")
    assert expected in message and "run.toml" in message
    assert "\n" not in message


def test_wrong_flag_names_the_flag(tmp_path):
    message = error(tmp_path, MINIMAL, {"train.steps": "many", "data.skip_bad": "maybe"})
    assert 'flag --train.steps: train.steps = "many": expected integer' in message
    assert 'flag --data.skip_bad: data.skip_bad = "maybe": expected true or false' in message
    assert message.startswith("2 problems:")


def test_wrong_list_is_reported_for_the_list(tmp_path):
    assert "expected list of texts" in error(tmp_path, MINIMAL + '[validation]\nprompts = ["a", 3]\n')
    assert "expected list of texts" in error(tmp_path, MINIMAL + '[validation]\nprompts = "a"\n')


def test_missing_keys_are_named(tmp_path):
    message = error(tmp_path, "seed = 1\n")
    for name in ("base", "output_dir", "data.train_data_dir"):
        assert f"missing key {name}" in message


def test_section_must_be_a_table(tmp_path):
    assert "must be a table: [train]" in error(tmp_path, "train = 3\n" + MINIMAL)
    assert "must be a table: [train]" in error(tmp_path, "train = 3\n" + MINIMAL, {"train.steps": "3"})


def test_contradictions(tmp_path):
    assert "keep one" in error(tmp_path, MINIMAL + 'validation_data_dir = "v"\nvalidation_fraction = 0.1\n')
    assert "lr_warmup_steps (5) exceeds" in error(tmp_path, MINIMAL + "[train]\nsteps = 2\nlr_warmup_steps = 5\n")


def test_unreadable_files(tmp_path):
    assert "not valid TOML" in error(tmp_path, "base = \n")
    with pytest.raises(FeraError, match="No such file"):
        load_config(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FeraError, match="not UTF-8"):
        load_config(tmp_path / "binary.toml")
    with pytest.raises(FeraError, match="cannot read"):
        load_config(tmp_path)


def test_adapter_section_mirrors_the_adapter_config():
    """Each key is a field of FeraConfig with the same default, but for what FeraConfig works out itself.

    What the router reads differs on purpose: training can start a router from its latents, a config alone cannot.
    """
    theirs = FeraConfig()
    apart = {"plain", "full", "router_init", "router_entropy", "exclude_modules", "blocks", "start_from", "top_k"}
    for name, value in AdapterConfig():
        if name not in {"lora_alpha", "target_modules", "router_input", *apart}:
            assert getattr(theirs, name) == value, name
    assert (theirs.router_input, AdapterConfig().router_input) == ("shares", "shares+timestep")
    assert FeraConfig(**AdapterConfig().model_dump(exclude=apart)).lora_alpha == theirs.lora_alpha


def test_every_key_is_described():
    for key in keys():
        assert key.field.description and key.field.description.endswith("."), key.name


def test_reference_page_is_up_to_date():
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == to_markdown(), "run: fera config --markdown > docs/configuration.md"


def test_examples_are_valid():
    examples = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))
    assert examples
    for example in examples:
        load_config(example)
