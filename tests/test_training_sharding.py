"""Layouts of several processes: what is refused, and weights and states between shards and wholes."""

import copy
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from training_cases import run_config

from fera.errors import FeraError
from fera.training import TrainConfig
from fera.training.sharding import check_launch, gathered, sharded_like, state_for, whole_state

LAUNCHES = Path(__file__).parents[1] / "examples" / "accelerate"
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


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


def test_every_example_configuration_is_tested():
    assert {path.stem for path in LAUNCHES.glob("*.yaml")} == {"ddp", "fsdp2"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed, which fera does not support: take DDP, or FSDP2"),
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
    monkeypatch.setattr("fera.training.sharding.find_processes", lambda: type("Alone", (), {"num_processes": 1}))
    with pytest.raises(FeraError, match=message):
        check_launch(config_of())


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"adapter": {"full": True}}, "adapter.full"),
        ({"adapter": {"plain": {"peft_type": "LORA", "r": 4}}}, "adapter.plain"),
        ({"adapter": {"expert": {"peft_type": "LOHA", "r": 4}}}, "adapter.expert"),
        ({"text_encoder": {"train_text_encoder": True}}, "text encoders"),
        ({"quantization": "4bit"}, "quantization is 4bit"),
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
