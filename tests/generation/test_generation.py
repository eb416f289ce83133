"""Prompts in, images out; grids; what is written into files; traces as tables and plots."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapter_cases import PROMPTS, add_adapter, make_pipeline
from PIL import Image
from tiny import WORDS

import fera
from fera import FeraError
from fera.generation import file_stem, generate, make_grid, save_image
from fera.generation.grids import prompt_grid
from fera.method.routing import Routing
from fera.traces.curves import routing_curves, save_csv
from fera.traces.plot import plot_routing


@pytest.fixture(scope="module", params=["sd", "sd3"])
def pipe(request):
    return make_pipeline(request.param)


def pixels(images):
    return np.stack([np.asarray(image, dtype=np.float32) for image in images])


def close(left, right):
    # Batches round differently; one level of 255 more or less is not seen.
    return np.abs(pixels(left) - pixels(right)).max() <= 1


# generate


def test_one_image_a_prompt(pipe):
    images = generate(pipe, PROMPTS, num_inference_steps=2)
    assert [(image.mode, image.size) for image in images] == [("RGB", (16, 16))] * 2
    assert not close(images[:1], images[1:])


def test_an_image_depends_on_its_own_prompt_and_seed_only(pipe):
    settings = {"num_inference_steps": 3, "guidance_scale": 3.0}
    images = generate(pipe, WORDS, seed=5, **settings)
    for batch_size in (1, 2, 5):
        assert close(generate(pipe, WORDS, seed=5, batch_size=batch_size, **settings), images)
    assert close(generate(pipe, [WORDS[3]], seed=8, **settings), images[3:4])
    assert not close(generate(pipe, [WORDS[3]], seed=9, **settings), images[3:4])


def test_the_global_random_state_is_left_alone(pipe):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    generate(pipe, PROMPTS[:1], num_inference_steps=1)
    assert torch.equal(torch.rand(3), expected)


def test_settings_reach_the_pipeline(pipe):
    plain = generate(pipe, PROMPTS, num_inference_steps=2, guidance_scale=4.0)
    for change in ({"num_inference_steps": 3}, {"guidance_scale": 1.0}, {"negative_prompt": "the sun and moon"}):
        settings = {"num_inference_steps": 2, "guidance_scale": 4.0} | change
        assert not np.array_equal(pixels(generate(pipe, PROMPTS, **settings)), pixels(plain)), change
    assert generate(pipe, PROMPTS[:1], num_inference_steps=1, height=24, width=32)[0].size == (32, 24)


def test_adapters_start_after_the_steps_that_the_base_does_alone(pipe):
    pipe = add_adapter(make_pipeline("sd" if hasattr(pipe, "unet") else "sd3"), "ink")
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0}
    whole = generate(pipe, PROMPTS, **settings)
    with fera.trace(pipe) as routings:
        late = generate(pipe, PROMPTS, adapter_start=0.5, batch_size=1, **settings)
    assert len({float(routing.timestep.flatten()[0]) for routing in routings}) == 2
    assert close(generate(pipe, PROMPTS, **settings), whole), "adapters are as they were"

    def wake(pipe, step, timestep, tensors):
        fera.set_adapters(pipe, ["ink"], weights=[float(step >= 1)])
        return tensors

    fera.set_adapters(pipe, ["ink"], weights=[0.0])
    generators = [torch.Generator().manual_seed(index) for index in range(len(PROMPTS))]
    expected = pipe(PROMPTS, generator=generators, callback_on_step_end=wake, **settings).images
    assert close(late, expected) and not close(late, whole)


def test_adapters_are_as_they_were_after_a_failure(pipe):
    pipe = add_adapter(make_pipeline("sd" if hasattr(pipe, "unet") else "sd3"), "ink")
    settings = {"num_inference_steps": 2}
    whole = generate(pipe, PROMPTS, **settings)
    with pytest.raises(FeraError, match="cannot draw this"):
        generate(pipe, PROMPTS, adapter_start=0.5, height=24, negative_prompt=3, **settings)
    assert close(generate(pipe, PROMPTS, **settings), whole)


def test_no_prompts_no_images(pipe):
    assert generate(pipe, []) == []


def test_progress_counts_to_the_total(pipe):
    seen = []
    generate(pipe, WORDS[:3], num_inference_steps=2, batch_size=2, progress=lambda *counts: seen.append(counts))
    assert seen == [(2, 6), (4, 6), (5, 6), (6, 6)]


def test_the_pipelines_own_progress_bar_is_silent_and_comes_back(pipe, capfd):
    pipe.set_progress_bar_config(desc="mine")
    capfd.readouterr()
    generate(pipe, PROMPTS[:1], num_inference_steps=1)
    assert capfd.readouterr().err == ""
    assert pipe._progress_bar_config == {"desc": "mine"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"adapter_start": 1.0}, r"adapter_start must lie in \[0, 1\), got 1.0"),
        ({"adapter_start": float("nan")}, "adapter_start must lie in"),
        ({"height": 13}, "cannot draw this: .*divisible"),
    ],
)
def test_bad_settings(pipe, settings, message):
    with pytest.raises(FeraError, match=message):
        generate(pipe, PROMPTS, **settings)


def test_a_string_is_no_list_of_prompts(pipe):
    with pytest.raises(FeraError, match="must be a list of prompts, got the string 'a red rocket'"):
        generate(pipe, "a red rocket")


def test_what_a_pipeline_does_not_take_is_named():
    class Odd:
        def set_progress_bar_config(self, **settings):
            pass

        def __call__(self, prompt, num_inference_steps, guidance_scale, generator):
            pass

    with pytest.raises(FeraError, match="Odd does not take: height, negative_prompt"):
        generate(Odd(), PROMPTS, height=8, negative_prompt="x")


def test_errors_of_fera_pass_through(pipe):
    class Failing(type(pipe)):
        def __call__(self, prompt, num_inference_steps, guidance_scale, generator):
            raise FeraError("as it is")

    failing = Failing.__new__(Failing)
    failing.set_progress_bar_config = lambda **settings: None
    with pytest.raises(FeraError, match="^as it is$"):
        generate(failing, PROMPTS)


# Files


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("a Red Rocket!", "007-a-red-rocket"),
        ("../../etc/passwd", "007-etc-passwd"),
        ("C:\\Windows\\nul", "007-c-windows-nul"),
        ("..", "007"),
        ("", "007"),
        ("snake_case -- dashes", "007-snake-case-dashes"),
        ("火箭 ракета", "007-火箭-ракета"),
        ("line\nbreak\0zero", "007-line-break-zero"),
        ("x" * 500, "007-" + "x" * 80),
    ],
)
def test_file_names_are_safe(prompt, stem, tmp_path):
    assert file_stem(7, prompt) == stem
    (tmp_path / f"{stem}.png").touch()
    assert [path.name for path in tmp_path.iterdir()] == [f"{stem}.png"]


def test_long_names_in_any_script_fit_a_file_system():
    assert len(file_stem(7, "火" * 500).encode()) <= 100


def test_images_carry_how_they_were_made(tmp_path):
    metadata = {"prompt": "a cat, 猫", "seed": 3, "guidance_scale": 2.0}
    save_image(Image.new("RGB", (4, 4)), tmp_path / "a.png", metadata)
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"prompt": "a cat, 猫", "seed": "3", "guidance_scale": "2.0", "fera": fera.__version__}


# Grids


def squares(*colors, side=64):
    return [Image.new("RGB", (side, side), color) for color in colors]


def test_a_grid_shows_every_image_in_its_place():
    grid = make_grid([squares("red", "green"), squares("blue", "yellow")])
    width, height = grid.size
    assert (width, height) == (2 * 128 + 3 * 8, 2 * 128 + 3 * 8)
    centres = [grid.getpixel((x, y)) for y in (72, 208) for x in (72, 208)]
    assert centres == [(255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 0)]
    assert grid.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("side", "cell"), [(16, 128), (64, 128), (100, 200), (256, 256), (1024, 512)])
def test_tiny_images_are_enlarged_and_huge_ones_reduced(side, cell):
    assert make_grid([squares("red", side=side)]).size == (cell + 16, cell + 16)


def test_labels_take_room_and_leave_the_images_alone():
    plain = make_grid([squares("red", "green")])
    labelled = make_grid([squares("red", "green")], ["base"], ["one", "a prompt with far more words than fit a line"])
    assert labelled.width > plain.width and labelled.height > plain.height
    colors = dict((color, count) for count, color in labelled.getcolors(100_000))
    assert colors[(255, 0, 0)] == colors[(0, 128, 0)] == 128 * 128


def ink(image):
    return int((np.asarray(image.convert("L")) < 128).sum())


@pytest.mark.parametrize("label", ["", "word", "a b c d e f g " * 40, "unbreakable" * 60, "火箭" * 200])
def test_any_label_fits(label):
    grid = make_grid([squares("white", "white")], ["row"], [label, "short"])
    assert grid.width < 600 and grid.height < 300
    assert (ink(grid) > ink(make_grid([squares("white", "white")], ["row"], ["", "short"]))) == bool(label)


def test_images_of_several_sizes_share_a_cell_and_none_is_blank():
    grid = make_grid([[Image.new("RGB", (64, 32), "red"), None], squares("blue")])
    colors = dict((color, count) for count, color in grid.getcolors(100_000))
    assert colors[(255, 0, 0)] == 128 * 64 and colors[(0, 0, 255)] == 128 * 128
    assert grid.size == (2 * 128 + 24, 2 * 128 + 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "at least one image"),
        (([[None]],), "at least one image"),
        (([squares("red")], ["a", "b"]), "got 2 labels for 1 rows"),
        (([squares("red")], [], ["a", "b"]), "got 2 labels for 1 columns"),
    ],
)
def test_grids_that_cannot_be(arguments, message):
    with pytest.raises(FeraError, match=message):
        make_grid(*arguments)


def test_many_prompts_are_broken_into_blocks():
    images = squares(*["red"] * 11)
    grid = prompt_grid({"base": images, "adapted": images}, [str(i) for i in range(11)], columns=4)
    assert grid.width < 4 * 160 + 200
    assert sum(count for count, color in grid.getcolors(100_000) if color == (255, 0, 0)) == 22 * 128 * 128
    with pytest.raises(FeraError, match="at least one image"):
        prompt_grid({}, [])


# Traces


def routing(timestep, gates, adapter="ink"):
    gates = torch.tensor(gates)
    return Routing(adapter, timestep, torch.tensor([[0.5, 0.3, 0.2]]).expand(len(gates), -1), gates)


def test_curves_average_over_samples_and_batches():
    first = [routing(torch.tensor(t), [[0.2, 0.8], [0.4, 0.6]]) for t in (999.0, 500.0)]
    second = [routing(torch.tensor([t]), [[0.9, 0.1]]) for t in (999.0, 500.0)]
    (curve,) = routing_curves([*first, *second])
    assert (curve.adapter, curve.timesteps) == ("ink", [999.0, 500.0])
    assert curve.gates[0] == pytest.approx([0.5, 0.5])
    assert curve.gates_std[0] == pytest.approx([np.std([0.2, 0.4, 0.9])] * 2, abs=1e-6)
    assert curve.indicator == [pytest.approx([0.5, 0.3, 0.2])] * 2
    assert curve.indicator_std == [pytest.approx([0.0] * 3, abs=1e-6)] * 2


def test_curves_of_calls_without_a_timestep_go_by_their_order():
    (curve,) = routing_curves([routing(None, [[1.0, 0.0]]), routing(None, [[0.0, 1.0]])])
    assert curve.timesteps == [0.0, 1.0]


def test_two_denoisers_with_one_adapter_name_have_curves_of_their_own():
    time = torch.tensor(999.0)
    first, second = routing(time, [[1.0, 0.0]]), routing(time, [[0.0, 1.0]])
    curves = routing_curves([replace(first, component="prior"), replace(second, component="decoder")])
    assert [curve.adapter for curve in curves] == ["ink (prior)", "ink (decoder)"]
    assert [curve.gates for curve in curves] == [[[1.0, 0.0]], [[0.0, 1.0]]]


def test_curves_tables_and_plots_of_a_real_trace(pipe, tmp_path):
    pipe = add_adapter(make_pipeline("sd" if hasattr(pipe, "unet") else "sd3"), "ink")
    with fera.trace(pipe) as routings:
        generate(pipe, WORDS[:3], num_inference_steps=4, batch_size=2)
    curves = routing_curves(routings)
    assert [len(curves[0].timesteps), len(curves[0].gates), len(curves[0].gates[0])] == [4, 4, 3]
    save_csv(curves, tmp_path / "gates.csv")
    rows = list(csv.DictReader((tmp_path / "gates.csv").open()))
    assert len(rows) == 4 * 3 + 4 * 3
    for quantity in ("gate", "band"):
        step = [float(row["mean"]) for row in rows if row["quantity"] == quantity and row["step"] == "2"]
        assert sum(step) == pytest.approx(1, abs=1e-5)
    plot_routing(curves * 2, tmp_path / "gates.png")
    with Image.open(tmp_path / "gates.png") as image:
        assert image.width > 800 and len(image.convert("RGB").getcolors(1_000_000)) > 10


def test_an_empty_trace_has_no_curves():
    assert routing_curves([]) == []
