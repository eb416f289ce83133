"""Stages: their order by hand, their steps, what a run sees of them, and that a broken-off run goes on in them."""

import itertools
import json
import math

import pytest
import torch
from crash_cases import events_of, kill_at_event, run, spread
from hypothesis import given
from hypothesis import strategies as st
from listeners import train
from PIL import Image
from training_cases import assert_resumes, assert_same_adapter, log_of, run_config

from fera import FeraError
from fera.cli.main import main
from fera.config.reading import load_config, to_toml
from fera.config.stages import StageConfig, stage_names, stage_steps
from fera.domains.energy import energy_distances, log_energies
from fera.domains.graph import DomainGraph
from fera.domains.order import MOST_SOURCES, visiting_order
from fera.domains.plot import in_a_plane, plot_graph
from fera.method.bands import FrequencyBands
from fera.report.contents import gather
from fera.report.folder import read_run
from fera.training import DataConfig, TrainConfig
from fera.training.step.order import Bucketed, Stream
from fera.training.step.stages import Staged
from fera.training.trainer import Trainer


def graph_of(points, target=0, names="tabcdefghijklmnopqrs"):
    """Points in a plane."""
    distances = tuple(tuple(math.dist(one, other) for other in points) for one in points)
    return DomainGraph(tuple(names[: len(points)]), target, distances, "the plane")


# The target t, and beside it on a line b at 1, a at 3, c at -2.
LINE = graph_of([(0, 0), (3, 0), (1, 0), (-2, 0)])


@pytest.mark.parametrize(
    ("order", "expected", "length"),
    [
        ("given", "abct", 2 + 3 + 2),
        ("nearest", "bcat", 3 + 5 + 3),
        ("farthest", "acbt", 5 + 3 + 1),
        # By hand: c, then a, then b is 5 + 2 + 1; a, b, c is 2 + 3 + 2, and nothing is shorter.
        ("path", "abct", 7),
    ],
)
def test_orders_by_hand(order, expected, length):
    found = visiting_order(LINE, order)
    assert "".join(LINE.named(found)) == expected and LINE.length(found) == length


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=6), st.data())
def test_no_path_is_shorter(points, data):
    graph = graph_of(points, target=data.draw(st.integers(0, len(points) - 1)))
    found = visiting_order(graph, "path")
    others = [graph.length([*way, graph.target]) for way in itertools.permutations(graph.sources)]
    assert found[-1] == graph.target and sorted(found) == list(range(len(points)))
    assert graph.length(found) == pytest.approx(min(others))


def test_alike_sources_stay_as_given():
    alike = graph_of([(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)])
    for order in ("nearest", "farthest"):
        assert visiting_order(alike, order) == [1, 2, 3, 4, 0]


def test_a_path_through_too_many_is_refused():
    many = graph_of([(place, 0) for place in range(MOST_SOURCES + 2)])
    assert len(visiting_order(many, "nearest")) == MOST_SOURCES + 2
    with pytest.raises(FeraError, match=f"at most {MOST_SOURCES} sources, and there are {MOST_SOURCES + 1}"):
        visiting_order(many, "path")


def test_energy_distances_are_the_formula():
    generator = torch.Generator().manual_seed(0)
    domains = [torch.rand(count, 3, generator=generator) * 5 + 0.1 for count in (7, 4, 1)]
    logs = [log_energies(domain, 8) for domain in domains]
    found = energy_distances(logs)
    for one, other in itertools.product(range(3), repeat=2):
        a, b = (torch.log(domains[place].double() / 8) for place in (one, other))
        means, deviations = a.mean(0) - b.mean(0), a.std(0, correction=0) - b.std(0, correction=0)
        assert found[one][other] == pytest.approx(float((means**2 + deviations**2).sum().sqrt()), abs=1e-12)
    assert [found[place][place] for place in range(3)] == [0, 0, 0]


def test_a_louder_domain_lies_as_far_as_its_logarithm():
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    bands = FrequencyBands(3)
    quiet, loud = (log_energies(bands.energies(scale * latents), latents[0].numel()) for scale in (1, 3))
    ((_, distance), _) = energy_distances([quiet, loud])
    assert distance == pytest.approx(2 * math.log(3) * math.sqrt(3), rel=1e-5)  # each of three bands by ln 9
    silent = log_energies(torch.zeros(2, 3), 8)
    assert torch.isfinite(silent).all()


def test_places_in_a_plane_keep_distances():
    points = torch.tensor([[0.0, 0], [3, 0], [0, 4], [-1, -1]], dtype=torch.float64)
    distances = torch.cdist(points, points)
    places = in_a_plane(distances.tolist())
    torch.testing.assert_close(torch.cdist(places, places), distances, atol=1e-6, rtol=0)


@pytest.mark.parametrize("points", [[(0, 0), (0, 0)], [(0, 0), (1, 0)], [(0, 0), (1, 0), (5, 5), (2, 1)]])
def test_the_picture_is_drawn(tmp_path, points):
    graph = graph_of(points)
    plot_graph(graph, visiting_order(graph, "path"), "path", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (1200, 600)


def stage(folder="a", **settings):
    return StageConfig.model_validate({"train_data_dir": folder} | settings)


@pytest.mark.parametrize(
    ("stages", "steps", "expected"),
    [
        ([{}, {}], 10, [5, 5]),
        ([{}, {}, {}], 10, [4, 3, 3]),
        ([{"weight": 1}, {"weight": 3}], 10, [3, 7]),  # 2.5 and 7.5: the first that lost a half gets the step
        ([{"steps": 4}, {"weight": 1}, {"weight": 2}], 10, [4, 2, 4]),
        ([{"steps": 4}, {"steps": 6}], 10, [4, 6]),
        ([{"weight": 0.001}, {"weight": 1}, {"weight": 1}], 4, [1, 2, 1]),
    ],
)
def test_steps_of_stages(stages, steps, expected):
    assert stage_steps([stage(**one) for one in stages], steps) == expected


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8), st.integers(0, 500))
def test_steps_sum_and_none_is_left_out(weights, more):
    found = stage_steps([stage(weight=weight) for weight in weights], len(weights) + more)
    assert sum(found) == len(weights) + more and min(found) >= 1


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"steps": 4}, {"steps": 5}], "the steps of data.stages sum to 9, and train.steps is 10: make them equal"),
        ([{"steps": 6}, {"steps": 5}], "sum to 11, and train.steps is 10"),
        ([{"steps": 9}, {}, {}], "sum to 9, which leaves 1 of train.steps, 10, for 2 stages without steps"),
        ([{"steps": 12}, {}], "leaves 0 of train.steps, 10, for 1 stages"),
    ],
)
def test_steps_that_do_not_sum(stages, message):
    with pytest.raises(ValueError, match=message):
        stage_steps([stage(**one) for one in stages], 10)


def test_names_tell_stages_apart():
    def names(*folders):
        return stage_names([stage(folder) for folder in folders])

    assert names("x/ink/train", "x/oil/train") == ["ink", "oil"]
    assert names("x/ink", "oil") == ["ink", "oil"]
    assert names("a/ink/one", "a/oil/one", "b/ink/two") == ["ink-one", "oil-one", "ink-two"]
    assert stage_names([stage("x/ink", name="water"), stage("x/oil")]) == ["water", "oil"]


def two(**settings):
    stages = [{"train_data_dir": "ink"}, {"train_data_dir": "oil", "target": True}]
    return {"stages": stages} | settings


def test_the_targets_folder_and_train_data_dir_are_one():
    config = DataConfig.model_validate(two())
    assert str(config.train_data_dir) == "oil" and config.held_out_stage == "oil"
    left_out = DataConfig.model_validate(
        {"train_data_dir": "oil", "stages": [{"train_data_dir": "ink"}, {"target": True}]}
    )
    assert left_out == config


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"stages": [{"train_data_dir": "a"}, {"train_data_dir": "b"}]}, "has no targets"),
        ({"stages": [{"train_data_dir": n, "target": True} for n in "ab"]}, "has 2 targets"),
        ({"stages": [{"train_data_dir": "a", "target": True}]}, "has a target and no source"),
        (two(train_data_dir="else"), "data.train_data_dir is else, and the target of data.stages is oil"),
        ({"stages": [{"train_data_dir": "a"}, {"train_data_dir": "a", "target": True}]}, "the folder a twice"),
        (
            {"stages": [{"train_data_dir": n, "name": "x", "target": n == "a"} for n in "ab"]},
            "has the name x twice",
        ),
        (two(class_data_dir="c"), "leave data.class_data_dir out"),
        (two(mask_path="c"), "leave data.mask_path out"),
        (two(source_path="c"), "leave data.source_path out"),
        (two(num_frames=[5], stage_distance="clip"), "leave data.num_frames or data.stage_distance out"),
        ({"train_data_dir": "a", "stage_order": "path"}, "data.stage_order is set, but there are no data.stages"),
        (
            {"stages": [{"train_data_dir": "a", "steps": 1, "weight": 2}, {"train_data_dir": "b", "target": True}]},
            "a has steps and a weight; keep one",
        ),
        (
            {
                "stage_order": "together",
                "stages": [{"train_data_dir": "a"}, {"train_data_dir": "b", "target": True, "steps": 3}],
            },
            "leave steps and weight of data.stages out",
        ),
        ({"stages": [{"train_data_dir": "a", "stepz": 3}, {"train_data_dir": "b", "target": True}]}, "stepz"),
    ],
)
def test_what_makes_no_stages(tmp_path, data, message):
    from fera.config.reading import parse_config

    with pytest.raises(FeraError) as refused:
        parse_config({"base": "b", "output_dir": tmp_path, "data": data}, "x.toml")
    assert message in str(refused.value)


def test_an_unknown_key_of_a_stage_is_named(tmp_path):
    (tmp_path / "x.toml").write_text(
        'base = "b"\noutput_dir = "o"\n[[data.stages]]\ntrain_data_dir = "a"\nsteps_ = 3\n'
        '[[data.stages]]\ntrain_data_dir = "b"\ntarget = true\n'
    )
    with pytest.raises(FeraError, match=r"unknown key 'steps_' in a table of data\.stages in .*did you mean 'steps'"):
        load_config(tmp_path / "x.toml")


def test_stages_come_back_from_toml_and_flags(tmp_path):
    flags = {
        "base": "b",
        "output_dir": "o",
        "data.stages": [
            '{"train_data_dir": "a", "weight": 2.5}',
            '{"train_data_dir": "b", "target": true, "name": "x y"}',
        ],
        "data.stage_order": "path",
    }
    config = load_config(None, flags)
    (tmp_path / "x.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "x.toml") == config
    assert config.data.stage_names == ["a", "x y"]


@pytest.mark.parametrize("kind", ["full", "bucketed"])
def test_each_stage_has_an_order_of_its_own(kind):
    def order(count, seed):
        sizes = [((8, 8), (8, 16))[row % 2] for row in range(count)]
        return Stream(count, 2, seed) if kind == "full" else Bucketed(sizes, 2, seed)

    parts = [(0, [5, 6, 7], order(3, 1)), (4, [0, 1, 2, 3], order(4, 2)), (7, [8, 9], order(2, 3))]
    staged, samples = Staged(parts), 0
    for place in range(15):
        rows = staged.rows(place)
        first, own, inner = parts[0 if place < 4 else 1 if place < 7 else 2]
        assert rows == [own[index] for index in inner.rows(place - first)] and rows
        assert staged.samples_before(place) == samples
        assert staged.place_after(samples) == place
        samples += len(rows)


COLOURS = {"flat": 0, "noisy": 1, "bright": 2, "aim": 3}


@pytest.fixture
def folders(tmp_path):
    """Four folders of three pictures each."""
    for name, seed in COLOURS.items():
        folder = tmp_path / "styles" / name
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(seed)
        for number in range(3):
            noise = torch.randn(16, 20, 3, generator=generator) * (1, 90, 20, 40)[seed]
            pixels = (noise + (60, 128, 230, 128)[seed]).clamp(0, 255).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(f"a {name} rocket")
    return tmp_path / "styles"


def staged(base, folders, output, order="path", train=None, data=None, steps=(1, 2, 1, 2)):
    stages = [
        {"train_data_dir": folders / name, "target": name == "aim", "steps": count}
        for name, count in zip(COLOURS, steps, strict=True)
    ]
    if order == "together":
        stages = [{key: value for key, value in one.items() if key != "steps"} for one in stages]
    return run_config(
        base,
        folders / "aim",
        output,
        data={"stages": stages, "stage_order": order} | (data or {}),
        adapter={"target_modules": ["to_q"]},
        train=train or {},
    )


@pytest.fixture
def seen(monkeypatch):
    """Names of the pictures in each batch of the runs to come."""
    batches = []
    losses = Trainer._losses

    def spy(self, batch, conditions):
        batches.append(batch.names)
        return losses(self, batch, conditions)

    monkeypatch.setattr(Trainer, "_losses", spy)
    return batches


def test_a_run_visits_its_stages_in_turn(tiny_sd_dir, folders, tmp_path, seen, capsys):
    config = staged(tiny_sd_dir, folders, tmp_path / "run", "given")
    train(config)
    visited = [{name.split("/")[0] for name in names} for names in seen]
    assert visited == [{"flat"}, {"noisy"}, {"noisy"}, {"bright"}, {"aim"}, {"aim"}]
    told = capsys.readouterr().err
    assert "12 training pictures from 4 stages" in told
    assert "stages, given: flat (1 step), then noisy (2 steps), then bright (1 step), then aim (2 steps)" in told
    assert "stage 2 of 4, noisy: 3 pictures, steps 2 to 3" in told
    assert log_of(config, "stage") == ["flat", "noisy", "bright", "aim"]
    assert json.loads((config.output_dir / "stages.json").read_text())["stages"][1] == {
        "name": "noisy",
        "pictures": 3,
        "first_step": 2,
        "steps": 2,
    }
    assert not (config.output_dir / "stages.png").exists(), "no distance was needed"


def test_stages_together_are_one_folder(tiny_sd_dir, folders, tmp_path, seen):
    config = staged(tiny_sd_dir, folders, tmp_path / "run", "together")
    train(config)
    names = [name for batch in seen for name in batch]
    assert len(names) == 12 and sorted(names) == sorted(f"{s}/{n}.png" for s in COLOURS for n in range(3))
    assert log_of(config, "stage") == []


def test_distances_choose_and_a_picture_shows_it(tiny_sd_dir, folders, tmp_path, capsys):
    config = staged(tiny_sd_dir, folders, tmp_path / "run", "nearest")
    train(config)
    told = json.loads((config.output_dir / "stages.json").read_text())
    graph = told["graph"]
    to_target = dict(zip(graph["names"], graph["distances"][graph["names"].index("aim")], strict=True))
    names = [one["name"] for one in told["stages"]]
    assert names[-1] == "aim" and names[:-1] == sorted(names[:-1], key=to_target.__getitem__)
    assert log_of(config, "stage") == names
    with Image.open(config.output_dir / "stages.png") as image:
        assert image.format == "PNG"
    page = gather(read_run(config.output_dir), None).stages
    assert [row[0] for row in page.rows] == names and page.order == "nearest" and page.graph is not None
    assert all(float(row[3]) > 0 for row in page.rows)
    # The same before training, as a command.
    (tmp_path / "x.toml").write_text(to_toml(config))
    capsys.readouterr()
    assert main(["data", "graph", str(tmp_path / "x.toml"), "--output", str(tmp_path / "g.svg"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["stages"] == names and shown["graph"] == graph and shown["pictures"]["flat"] == 3
    assert (tmp_path / "g.svg").read_text().startswith("<?xml")
    assert main(["data", "graph", str(tmp_path / "x.toml"), "--output", str(tmp_path / "g.png")]) == 0
    assert f"{', then '.join(names)}" in capsys.readouterr().out


def test_distances_of_features(tiny_sd_dir, folders, tmp_path, capsys):
    config = staged(tiny_sd_dir, folders, tmp_path / "run", "path", data={"stage_distance": "judge", "resolution": 32})
    (tmp_path / "x.toml").write_text(to_toml(config))
    assert main(["data", "graph", str(tmp_path / "x.toml"), "--output", str(tmp_path / "g.png"), "--json"]) == 0
    graph = json.loads(capsys.readouterr().out)["graph"]
    assert "features of judge" in graph["measure"]
    from fera.features.distributions import kernel_distance
    from fera.features.judge import load_judge
    from fera.features.pixels import PixelSet

    judge = load_judge()
    looks = [judge.look(PixelSet(sorted((folders / n).glob("*.png")), (32, 32))).features for n in ("flat", "aim")]
    expected = math.sqrt(max(0.0, kernel_distance(*looks)))
    assert graph["distances"][0][3] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_run_goes_on_in_its_stage(tiny_sd_dir, folders, tmp_path, step):
    settings = {"train": {"checkpointing_steps": 1, "caption_dropout": 0.5}}
    straight, stopped = (staged(tiny_sd_dir, folders, tmp_path / name, **settings) for name in ("straight", "stopped"))
    assert_resumes(straight, stopped, step, "loss", "stage", "stage_number")


def test_a_run_goes_on_in_the_order_that_it_began_with(tiny_sd_dir, folders, tmp_path, monkeypatch):
    """Whatever network or version would choose another one today."""
    settings = {"train": {"checkpointing_steps": 1}}
    straight, stopped = (staged(tiny_sd_dir, folders, tmp_path / name, **settings) for name in ("straight", "stopped"))

    def other(*arguments, **more):
        raise AssertionError("chosen anew")

    train(straight)
    from training_cases import power_cut

    with power_cut(3):
        train(stopped)
    monkeypatch.setattr("fera.training.start.stages.domain_graph", other)
    train(stopped, resume=True)
    assert_same_adapter(straight, stopped)


def test_other_batches_stay_in_their_stage(tiny_sd_dir, folders, tmp_path, seen):
    from training_cases import power_cut

    settings = {"order": "given"}
    config = staged(tiny_sd_dir, folders, tmp_path / "run", **settings, train={"checkpointing_steps": 1})
    with power_cut(4):
        train(config)
    seen.clear()
    other = staged(
        tiny_sd_dir, folders, tmp_path / "run", **settings, train={"checkpointing_steps": 1, "batch_size": 3}
    )
    train(other, resume=True, allow=["train.batch_size"])
    assert [{name.split("/")[0] for name in names} for names in seen] == [{"aim"}, {"aim"}]


def test_other_stages_are_another_run(tiny_sd_dir, folders, tmp_path):
    from training_cases import power_cut

    config = staged(tiny_sd_dir, folders, tmp_path / "run", "given", train={"checkpointing_steps": 1})
    with power_cut(2):
        train(config)
    for other in (
        staged(tiny_sd_dir, folders, tmp_path / "run", "farthest", train={"checkpointing_steps": 1}),
        staged(tiny_sd_dir, folders, tmp_path / "run", "given", steps=(2, 1, 1, 2), train={"checkpointing_steps": 1}),
    ):
        with pytest.raises(FeraError, match=r"cannot resume .* with other settings: data\.stage"):
            train(other, resume=True)
    train(other, resume=True, allow=["data.stages"])
    assert log_of(config, "stage")[-1] == "aim"


def test_a_stage_without_pictures(tiny_sd_dir, folders, tmp_path):
    (folders / "flat" / "0.png").rename(folders / "0.png")
    for path in (folders / "flat").iterdir():
        path.unlink()
    with pytest.raises(FeraError, match=r"no pictures in .*flat"):
        train(staged(tiny_sd_dir, folders, tmp_path / "run"))
    (folders / "flat").rmdir()
    with pytest.raises(FeraError, match=r"data folder .*flat does not exist"):
        train(staged(tiny_sd_dir, folders, tmp_path / "run"))


def test_a_stage_whose_pictures_are_all_bad(tiny_sd_dir, folders, tmp_path):
    for path in (folders / "noisy").glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(FeraError, match="stage noisy of data.stages has no picture to train on"):
        train(staged(tiny_sd_dir, folders, tmp_path / "run", data={"skip_bad": True}))


def test_features_need_two_pictures(tiny_sd_dir, folders, tmp_path):
    for number in (1, 2):
        (folders / "flat" / f"{number}.png").unlink()
    with pytest.raises(FeraError, match="needs two pictures of a stage at least, and flat has one: take energy"):
        train(staged(tiny_sd_dir, folders, tmp_path / "run", data={"stage_distance": "judge"}))


def test_pictures_are_held_out_of_the_target_alone(tiny_sd_dir, folders, tmp_path, seen):
    alone = run_config(tiny_sd_dir, folders / "aim", tmp_path / "alone", data={"validation_fraction": 0.3})
    train(alone)
    held_out = {"0.png", "1.png", "2.png"} - {name for names in seen for name in names}
    seen.clear()
    # So many steps that all others are seen.
    config = staged(
        tiny_sd_dir,
        folders,
        tmp_path / "run",
        "given",
        steps=(2, 2, 2, 2),
        train={"steps": 8},
        data={"validation_fraction": 0.3},
    )
    train(config)
    every = {f"{name}/{number}.png" for name in COLOURS for number in range(3)}
    assert every - {name for names in seen for name in names} == {f"aim/{name}" for name in held_out}


def test_no_graph_without_stages(tmp_path, capsys):
    (tmp_path / "x.toml").write_text('base = "b"\noutput_dir = "o"\n[data]\ntrain_data_dir = "p"\n')
    assert main(["data", "graph", str(tmp_path / "x.toml"), "--output", str(tmp_path / "no" / "g.png")]) == 2
    assert "--output" in capsys.readouterr().err
    assert main(["data", "graph", str(tmp_path / "x.toml"), "--output", str(tmp_path / "g.png")]) == 2
    assert "there are no data.stages" in capsys.readouterr().err


def test_killed_in_any_stage(tiny_sd_dir, folders, tmp_path):
    def configure(name) -> TrainConfig:
        config = staged(
            tiny_sd_dir,
            folders,
            tmp_path / name,
            train={"checkpointing_steps": 1, "checkpoints_total_limit": 1},
            data={"cache_dir": tmp_path / name / "cache"},
        )
        return config

    def started(config) -> None:
        train(config, resume=(config.output_dir / "config.toml").exists())

    straight = configure("straight")
    events = events_of(lambda: started(straight), straight.output_dir, tmp_path / "events")
    for index, number in enumerate(spread(events, 3, 0)):
        config = configure(f"killed-{index}")
        assert kill_at_event(lambda config=config: started(config), config.output_dir, number) == -9, events[number]
        assert run(lambda config=config: started(config)) == 0, events[number]
        assert_same_adapter(config, straight)
        assert log_of(config, "stage") == log_of(straight, "stage"), events[number]
        assert (config.output_dir / "stages.json").exists() and (config.output_dir / "stages.png").exists()
