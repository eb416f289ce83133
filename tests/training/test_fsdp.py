"""Layouts of several processes: what is refused, and weights and states between shards and wholes."""

import copy
import os
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from training_cases import run_config

from fera.errors import FeraError
from fera.training import TrainConfig
from fera.training.processes.fsdp import check_launch, gathered, sharded_like, state_for, whole_state
from fera.training.processes.zero_launch import is_launched, launched_plainly, zero_stage

LAUNCHES = Path(__file__).parents[2] / "examples" / "accelerate"
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true"}


def config_of(**sections: dict) -> TrainConfig:
    return run_config(Path("base"), Path("pictures"), Path("run"), **sections)


def set_all(monkeypatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("name", "sharded"), [("ddp", False), ("fsdp2", True)])
def test_example_configurations_start_what_fera_supports(monkeypatch, name, sharded):
    arguments = ["--config_file", str(LAUNCHES / f"{name}.yaml"), "-m", "fera.cli"]
    arguments, read, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert arguments.multi_gpu != sharded and arguments.use_fsdp == sharded
    assert read.num_processes == arguments.num_processes == 2
    started = prepare_multi_gpu_env(arguments)
    set_all(monkeypatch, {key: value for key, value in started.items() if key.startswith(("ACCELERATE_", "FSDP_"))})
    check_launch(config_of())
    if sharded:
        with pytest.raises(FeraError, match="under FSDP2"):
            check_launch(config_of(train={"use_ema": True}))


@pytest.fixture
def two_processes(monkeypatch):
    """A launch of two, with DeepSpeed at hand."""
    set_all(monkeypatch, {"LOCAL_RANK": "0", "WORLD_SIZE": "2"})
    monkeypatch.setattr("fera.training.processes.fsdp.find_processes", lambda: type("Two", (), {"num_processes": 2}))
    monkeypatch.setattr("fera.training.processes.zero_launch.is_deepspeed_available", lambda: True)


@pytest.mark.usefixtures("two_processes")
def test_the_example_configuration_of_deepspeed_starts_what_fera_supports(monkeypatch):
    arguments = ["--config_file", str(LAUNCHES / "deepspeed.yaml"), "-m", "fera.cli"]
    arguments, read, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert arguments.use_deepspeed and read.num_processes == arguments.num_processes == 2
    arguments.deepspeed_fields_from_accelerate_config = ""  # as the command sets it just before
    _, started = prepare_deepspeed_cmd_env(arguments)
    set_all(monkeypatch, {key: value for key, value in started.items() if key.startswith("ACCELERATE_")})
    assert zero_stage() == "2"
    check_launch(config_of(train={"gradient_accumulation_steps": 3, "max_grad_norm": 0.5}))
    with pytest.raises(FeraError, match="under ZeRO"):
        check_launch(config_of(train={"optimizer": "adafactor"}))


def test_every_example_configuration_is_tested():
    assert {path.stem for path in LAUNCHES.glob("*.yaml")} == {"ddp", "fsdp2", "deepspeed"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (ZERO, "one process was started for DeepSpeed"),
        (ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO 3, and fera supports 1 and 2.*take FSDP2"),
        (ZERO | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, "deepspeed_config_file"),
        (ZERO | {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "offload_optimizer_device"),
        (ZERO | {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, "offload_param_device"),
        (ZERO | {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_config"),
        (ZERO | {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "accumulation_steps is 4, and train.* is 1"),
        (ZERO | {"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, "gradient_clipping is 0.5, and train.max_grad_norm is 1"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP 1, which fera does not support: set fsdp_version: 2"),
        (FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        (FSDP2 | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading"),
        (FSDP2 | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "use train.gradient_checkpointing"),
        (FSDP2 | {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dynamo_config"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "2 processes were started.*not found each other"),
    ],
)
def test_launches_that_cannot_work(monkeypatch, environment, message):
    set_all(monkeypatch, environment)
    monkeypatch.setattr("fera.training.processes.fsdp.find_processes", lambda: type("Alone", (), {"num_processes": 1}))
    with pytest.raises(FeraError, match=message):
        check_launch(config_of())


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"adapter": {"full": True}}, "adapter.full"),
        ({"adapter": {"plain": {"peft_type": "LORA", "r": 4}}}, "adapter.plain"),
        ({"adapter": {"expert": {"peft_type": "LOHA", "r": 4}}}, "adapter.expert"),
        ({"text_encoder": {"train_text_encoder": True}}, "text encoders"),
        ({"quantization": "4bit"}, "the base is quantized"),
        ({"train": {"optimizer": "adafactor"}}, "train.optimizer is adafactor"),
        ({"train": {"use_ema": True}}, "train.use_ema"),
        ({"train": {"mixed_precision": "fp16"}}, "fp16"),
        ({"validation": {"prompts": ["a rocket"]}}, "validation.prompts.*fera generate"),
    ],
)
def test_settings_that_do_not_go_with_fsdp2(monkeypatch, sections, message):
    config = config_of(**sections)
    check_launch(config)
    set_all(monkeypatch, FSDP2)
    with pytest.raises(FeraError, match=f"under FSDP2.*{message}"):
        check_launch(config)


@pytest.mark.usefixtures("two_processes")
@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"text_encoder": {"train_text_encoder": True}}, "text encoders"),
        ({"quantization": "4bit"}, "the base is quantized"),
        ({"train": {"optimizer": "adafactor"}}, "train.optimizer is adafactor"),
        ({"train": {"mixed_precision": "fp16"}}, "fp16"),
    ],
)
def test_settings_that_do_not_go_with_zero(monkeypatch, sections, message):
    config = config_of(**sections)
    check_launch(config)
    set_all(monkeypatch, ZERO)
    with pytest.raises(FeraError, match=f"under ZeRO.*{message}"):
        check_launch(config)


@pytest.mark.usefixtures("two_processes")
def test_deepspeed_that_is_not_installed(monkeypatch):
    set_all(monkeypatch, ZERO)
    check_launch(config_of())
    monkeypatch.setattr("fera.training.processes.zero_launch.is_deepspeed_available", lambda: False)
    with pytest.raises(FeraError, match=r"pip install 'fera\[deepspeed\]'"):
        check_launch(config_of())


def test_accelerate_takes_deepspeed_for_ddp(monkeypatch):
    """Else it would accumulate as the launch says, and hold the engine itself."""
    set_all(monkeypatch, ZERO | {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"})
    before = dict(os.environ)
    with launched_plainly():
        assert not is_launched() and "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in os.environ
    assert is_launched() and dict(os.environ) == before


@pytest.fixture
def alone_in_a_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def stepped(*, sharded: bool, state: dict | None = None, steps: int = 1) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small model with a frozen layer, and its optimizer after some steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    model[0].requires_grad_(False)
    if sharded:
        fully_shard(model[1])
        fully_shard(model)
    optimizer = torch.optim.AdamW(model[1].parameters(), lr=0.1, fused=True)
    if state is not None:
        optimizer.load_state_dict(state_for(state, list(model[1].parameters())))
    for _ in range(steps):
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.usefixtures("alone_in_a_group")
def test_weights_are_whole_while_they_are_saved():
    model, _ = stepped(sharded=True)
    shards = dict(model.named_parameters())
    with torch.no_grad():
        model(torch.ones(4, 3))  # leaves weights put together
    with gathered(model):
        saved = {name: value for name, value in model.state_dict().items() if name.startswith("1.")}
        assert not any(isinstance(value, DTensor) for value in saved.values())
    expected = stepped(sharded=False)[0].state_dict()
    assert all(torch.allclose(value, expected[name]) for name, value in saved.items())
    assert {name: id(value) for name, value in model.named_parameters()} == {
        name: id(value) for name, value in shards.items()
    }


@pytest.mark.usefixtures("alone_in_a_group")
def test_weights_come_back_as_shards():
    model, _ = stepped(sharded=True)
    values = {name: torch.full(value.shape, 0.5) for name, value in model.named_parameters()}
    model.load_state_dict(sharded_like(model, values))
    assert all(isinstance(value, DTensor) and value.full_tensor().eq(0.5).all() for value in model.parameters())
    whole = stepped(sharded=False)[0]
    assert sharded_like(whole, values) is values


@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.parametrize("first", [True, False])
def test_an_optimizer_goes_on_in_the_other_layout(first):
    """Saved sharded and restored whole, and the other way round: the step after is the same."""
    state = whole_state(stepped(sharded=first)[1].state_dict())
    assert not any(isinstance(value, DTensor) for entry in state["state"].values() for value in entry.values())
    results = []
    for sharded in (first, not first):
        model, _ = stepped(sharded=sharded, state=copy.deepcopy(state))  # steps are taken in place
        with gathered(model):
            results.append([value.detach().clone() for value in model[1].parameters()])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*results, strict=True))


def test_a_state_is_in_memory_as_its_weight_is():
    """A fused step takes numbers in the order of memory; under ZeRO channels come first, alone they come last."""
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    state = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.randn(4, 3, 2, 2)}}, "param_groups": []}
    fitted = state_for(state, [weight])["state"][0]
    assert fitted["exp_avg"].stride() == weight.stride() and torch.equal(
        fitted["exp_avg"], state["state"][0]["exp_avg"]
    )
