"""Adapters that are steered while they draw: weights along the steps, gates held still, experts alone and muted."""

import json

import numpy as np
import pytest
import torch
from adapter_cases import PROMPTS, add_adapter, denoiser_of, make_pipeline, write_adapter
from peft.tuners.lora.layer import LoraLayer
from PIL import Image

import fera
from fera import FeraError
from fera.format import LIVE, LIVE_STEPS
from fera.generation import generate
from fera.generation.drawing import Drawing, draw
from fera.generation.steering import AdapterUse, parse_adapter, parse_weights, read_uses, steered
from fera.generation.weights import weight_at, weights_along
from fera.pipelines.experts import fixed_gate, one_hot, weighted_experts


@pytest.fixture(params=["sd", "sd3"])
def pipe(request):
    return add_adapter(make_pipeline(request.param), "ink")


def pixels(images):
    return np.stack([np.asarray(image, dtype=np.float32) for image in images])


def test_weights_are_spread_evenly_with_straight_lines_between():
    assert [weight_at((0, 1), step, 5) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert [weight_at((0, 1, 0.5), step, 5) for step in range(5)] == [0, 0.5, 1, 0.75, 0.5]
    assert weight_at((2, 3), 0, 1) == 2 and weight_at((0.3,), 4, 5) == 0.3


def test_layers_have_the_weight_of_their_step_and_the_first_again(pipe):
    layer = next(
        module for module in denoiser_of(pipe).modules() if isinstance(module, LoraLayer) and "ink" in module.scaling
    )
    whole = layer.scaling["ink"]
    seen = []
    with weights_along(pipe, {"ink": (0, 1)}, 3) as after:
        for done in range(1, 4):
            seen.append(layer.scaling["ink"] / whole)
            after(done)
    assert seen == [0, 0.5, 1] and layer.scaling["ink"] == 0


def test_equal_weights_along_the_steps_are_one_weight(pipe):
    settings = {"num_inference_steps": 3, "guidance_scale": 1.0}
    fera.set_adapters(pipe, "ink", 0.5)
    one = generate(pipe, PROMPTS, **settings)
    assert np.array_equal(pixels(generate(pipe, PROMPTS, weights={"ink": (0.5, 0.5)}, **settings)), pixels(one))
    fera.set_adapters(pipe, "ink", 3.0)
    whole = generate(pipe, PROMPTS, **settings)
    fading = generate(pipe, PROMPTS, weights={"ink": (3.0, 0.0)}, **settings)
    fera.set_adapters(pipe, [])
    base = generate(pipe, PROMPTS, **settings)
    assert not np.array_equal(pixels(fading), pixels(whole)) and not np.array_equal(pixels(fading), pixels(base))


def test_factors_go_over_the_routers_gate(pipe):
    with fera.trace(pipe) as routed:
        generate(pipe, PROMPTS, num_inference_steps=2)
    with weighted_experts(pipe, (0, 2, 1), adapter_name="ink"), fera.trace(pipe) as louder:
        generate(pipe, PROMPTS[:1], num_inference_steps=1)
    # The first step sees the same latents, whatever acts in it.
    assert torch.allclose(louder[0].gates[0], routed[0].gates[0] * torch.tensor([0.0, 2.0, 1.0]))
    with fera.trace(pipe) as after:
        generate(pipe, PROMPTS, num_inference_steps=2)
    assert torch.equal(after[0].gates, routed[0].gates)


def test_an_expert_alone_at_its_full_gate_is_all_but_it_muted_under_that_gate(pipe):
    settings = {"num_inference_steps": 2}
    with fixed_gate(pipe, one_hot(1, 3), adapter_name="ink"):
        alone = generate(pipe, PROMPTS, **settings)
    use = AdapterUse("x", gate=(0.25, 0.5, 0.25), experts=(0, 2, 0))
    with steered(pipe, [("ink", use)]):
        assert np.array_equal(pixels(generate(pipe, PROMPTS, **settings)), pixels(alone))


@pytest.mark.parametrize("factors", [(1, 0), (1, 0, 1, 0), (1, 0, float("nan"))])
def test_a_factor_an_expert_is_needed(pipe, factors):
    with pytest.raises(FeraError, match="has 3 experts"), weighted_experts(pipe, factors, adapter_name="ink"):
        pass


def test_texts_of_the_command_line():
    assert parse_weights("runs/ink") == ("runs/ink", (1.0,))
    assert parse_weights("runs/ink=0:1:0.5") == ("runs/ink", (0.0, 1.0, 0.5))
    assert parse_adapter("runs/ink=0.5") == ("runs/ink", 0.5)
    with pytest.raises(FeraError, match="one weight is taken"):
        parse_adapter("runs/ink=0:1")
    with pytest.raises(FeraError, match="at most 64"):
        parse_weights("a=" + ":".join("1" * 65))
    (use,) = read_uses([("a", (0.5, 1.0))], ["0.2,0.3,0.5"], ["0,1,0"])
    assert use == AdapterUse("a", (0.5, 1.0), (0.2, 0.3, 0.5), (0.0, 1.0, 0.0)) and use.text == "a=0.5:1"
    assert read_uses([("a", 1.0)], [], []) == [AdapterUse("a")]
    for gates, experts in ((["x"], []), ([], ["1;0"]), (["uniform", "uniform"], [])):
        with pytest.raises(FeraError, match="`gates`|`experts`"):
            read_uses([("a", 1.0)], gates, experts)


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_a_drawing_is_followed_step_by_step(kind, tmp_path):
    base = make_pipeline(kind)
    base.save_pretrained(tmp_path / "base")
    adapter = write_adapter(kind, tmp_path / "ink")
    asked = {"prompts": PROMPTS, "base": str(tmp_path / "base"), "adapters": [(str(adapter), 1.0)], "steps": 3}
    draw(Drawing(output=tmp_path / "plain", compare_base=True, trace=True, **asked))
    files = draw(Drawing(output=tmp_path / "live", compare_base=True, trace=True, live=True, **asked))
    # Watching changes nothing of what is drawn.
    for file in files:
        if file.suffix == ".png" and file.name != "gates.png":
            with Image.open(file) as left, Image.open(tmp_path / "plain" / file.name) as right:
                assert np.array_equal(np.asarray(left), np.asarray(right))
    folder = tmp_path / "live" / LIVE
    lines = [json.loads(line) for line in (folder / LIVE_STEPS).read_text().splitlines()]
    assert [(one["row"], one["picture"], one["step"], one["steps"]) for one in lines] == [
        (row, picture, step, 3) for row in ("base", "adapted") for step in (1, 2, 3) for picture in (0, 1)
    ]
    assert all(one["gates"] == {} for one in lines[:6])
    for one in lines[6:]:
        assert sum(one["gates"]["ink"]) == pytest.approx(1, abs=1e-3) and len(one["bands"]["ink"]) == 3
    # The last preview is the picture, but for JPEG and the noise that is left.
    with (
        Image.open(folder / lines[-1]["preview"]) as preview,
        Image.open(tmp_path / "live/001-a-green-tree.png") as last,
    ):
        assert preview.size == last.size
        assert np.abs(pixels([preview]) - pixels([last])).mean() < 40
    # Again into the same folder: of the earlier one nothing is left.
    draw(Drawing(output=tmp_path / "live", live=True, overwrite=True, **{**asked, "prompts": PROMPTS[:1], "steps": 1}))
    assert sorted(path.name for path in folder.iterdir()) == ["000-adapted-001.jpg", LIVE_STEPS]


def test_pictures_hold_what_draws_them_again(tmp_path):
    make_pipeline("sd").save_pretrained(tmp_path / "base")
    adapter = write_adapter("sd", tmp_path / "ink")
    asked = Drawing(
        prompts=PROMPTS,
        output=tmp_path / "out",
        base=str(tmp_path / "base"),
        adapters=[(str(adapter), (0.5, 1.5))],
        gates=["uniform"],
        experts=["1,0,2"],
        seed=4,
        steps=2,
        width=24,
        height=16,
    )
    draw(asked)
    with Image.open(tmp_path / "out" / "001-a-green-tree.png") as image:
        held, drawn = json.loads(image.text["settings"]), np.asarray(image)
    (use,) = held["adapters"]
    again = Drawing(
        prompts=[held["prompt"]],
        output=tmp_path / "again",
        base=held["base"],
        adapters=[(use["path"], use["weights"])],
        gates=[use["gate"]],
        experts=[",".join(map(str, use["experts"]))],
        **{name: held[name] for name in ("seed", "steps", "guidance_scale", "negative_prompt", "width", "height")},
    )
    draw(again)
    with Image.open(tmp_path / "again" / "000-a-green-tree.png") as image:
        assert np.abs(np.asarray(image, dtype=float) - drawn).max() <= 1  # drawn beside another there
