"""What a trace says of the router: guidance counted once, use, entropy, collapse, correlation."""

import csv
import math
from dataclasses import replace

import pytest
import torch
from adapter_cases import PROMPTS, add_adapter, make_pipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import fera
from fera import FrequencyBands
from fera.analysis.gates import GatePaths, gate_paths, one_a_picture
from fera.analysis.routing_plots import plot_gates
from fera.analysis.routing_words import gate_words
from fera.analysis.tables import save_gates_by_picture
from fera.analysis.walk import Sampling, walk
from fera.generation import generate
from fera.method.routing import Routing


def paths_of(gates, indicator=None):
    """Paths of gates (S, N, E); the indicator is uniform where none is given."""
    gates = torch.tensor(gates)
    indicator = torch.full((*gates.shape[:2], 3), 1 / 3) if indicator is None else torch.tensor(indicator)
    return GatePaths("ink", [float(t) for t in range(len(gates), 0, -1)], gates, indicator)


def routing(timestep, indicator, gates):
    return Routing("ink", timestep, torch.tensor(indicator), torch.tensor(gates), "unet")


# From a trace to pictures


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_guidance_does_not_double_the_pictures(kind):
    pipe = add_adapter(make_pipeline(kind), "ink")
    with fera.trace(pipe) as routings:
        generate(pipe, PROMPTS, num_inference_steps=3, guidance_scale=3.0)
    assert routings[0].gates.shape[0] == 4
    kept = one_a_picture(routings, 2)
    assert [r.gates.shape for r in kept] == [(2, 3)] * 3
    assert all(torch.equal(r.gates, full.gates[2:]) for r, full in zip(kept, routings, strict=True))
    (paths,) = gate_paths([kept])
    assert paths.gates.shape == (3, 2, 3) and len(paths.timesteps) == 3


def test_two_calls_a_step_count_once_and_two_latents_at_one_timestep_twice():
    time = torch.tensor(500.0)
    call = routing(time, [[0.5, 0.5]], [[0.2, 0.8]])
    moved = routing(time, [[0.6, 0.4]], [[0.2, 0.8]])
    later = replace(call, timestep=torch.tensor(400.0))
    kept = one_a_picture([call, call, moved, later, later], 1)
    seen = [(float(r.timestep), round(float(r.indicator[0, 0]), 3)) for r in kept]
    assert seen == [(500.0, 0.5), (500.0, 0.6), (400.0, 0.5)]
    unknown = replace(call, timestep=None)
    assert len(one_a_picture([unknown, unknown], 1)) == 1


def test_a_timestep_a_row_is_cut_with_its_rows():
    doubled = routing(torch.tensor([500.0, 500.0]), [[0.5, 0.5]] * 2, [[0.2, 0.8]] * 2)
    (kept,) = one_a_picture([doubled], 1)
    assert kept.timestep.tolist() == [500.0] and kept.gates.shape == (1, 2)


def test_batches_join_and_denoisers_stay_apart():
    first = [routing(torch.tensor(t), [[0.5, 0.5]] * 2, [[0.2, 0.8]] * 2) for t in (9.0, 5.0)]
    second = [routing(torch.tensor(t), [[0.4, 0.6]], [[0.6, 0.4]]) for t in (9.0, 5.0)]
    (paths,) = gate_paths([first, second])
    assert (paths.adapter, paths.timesteps) == ("ink", [9.0, 5.0])
    assert paths.gates[1].tolist() == [pytest.approx(row) for row in ([0.2, 0.8], [0.2, 0.8], [0.6, 0.4])]
    names = [p.adapter for p in gate_paths([[*first, *(replace(r, component="prior") for r in first)]])]
    assert names == ["ink (unet)", "ink (prior)"]
    assert gate_paths([[], []]) == []


def test_a_walk_records_what_a_trace_does():
    pipe = add_adapter(make_pipeline("sd"), "ink")
    with fera.trace(pipe) as routings:
        generate(pipe, PROMPTS, num_inference_steps=3, guidance_scale=3.0)
    found = walk(pipe, Sampling(PROMPTS, steps=3, guidance_scale=3.0), FrequencyBands(), model="adapted", traced=True)
    (paths,) = found.gates
    assert torch.equal(paths.gates, torch.stack([r.gates[:2] for r in routings]))
    # What the router saw is the latent of the energies.
    torch.testing.assert_close(found.energies.shares("latent"), paths.indicator, rtol=1e-4, atol=1e-5)


# Numbers


def test_entropy_and_use_of_known_gates():
    paths = paths_of([[[1.0, 0.0]], [[0.0, 1.0]], [[0.5, 0.5]]])
    assert paths.use.tolist() == [0.5, 0.5] and paths.use_entropy == pytest.approx(1)
    assert paths.entropy.tolist() == pytest.approx([0, 0, 1])
    assert paths_of([[[1.0]], [[1.0]]]).entropy.tolist() == [1.0, 1.0]
    quarter = paths_of([[[0.25, 0.75]]])
    assert float(quarter.entropy[0]) == pytest.approx(-(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)), abs=1e-6)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 5), st.integers(0, 99))
def test_numbers_stay_in_their_ranges(steps, pictures, experts, seed):
    generator = torch.Generator().manual_seed(seed)
    gates = torch.softmax(2 * torch.randn(steps, pictures, experts, generator=generator), dim=2)
    shares = torch.softmax(torch.randn(steps, pictures, 3, generator=generator), dim=2)
    paths = GatePaths("ink", list(range(steps)), gates, shares)
    assert float(paths.use.sum()) == pytest.approx(1, abs=1e-5)
    assert 0 <= paths.use_entropy <= 1 + 1e-6 and (paths.entropy <= paths.use_entropy + 1e-5).any()
    assert paths.correlation.shape == (experts, 3) and (paths.correlation.abs() <= 1 + 1e-5).all()
    assert paths.shared_motion is None or 0 <= paths.shared_motion <= 1 + 1e-5
    assert gate_words(paths)


def test_motion_is_shared_or_the_pictures_own():
    clock = paths_of([[[0.1, 0.9]] * 2, [[0.9, 0.1]] * 2])
    assert clock.shared_motion == pytest.approx(1)
    apart = paths_of([[[0.1, 0.9], [0.9, 0.1]]] * 2)
    assert apart.shared_motion == pytest.approx(0, abs=1e-6)
    assert paths_of([[[0.3, 0.7]] * 2] * 2).shared_motion is None


def test_correlation_names_the_band_that_a_gate_follows():
    shares = [[[t, 0.5 - t / 2, 0.5 - t / 2]] for t in (0.1, 0.4, 0.6)]
    gates = [[[t / 2, 1 - t / 2]] for t in (0.1, 0.4, 0.6)]
    correlation = paths_of(gates, shares).correlation
    assert correlation[0].tolist() == pytest.approx([1, -1, -1], abs=1e-5)
    assert correlation[1].tolist() == pytest.approx([-1, 1, 1], abs=1e-5)
    assert "expert 1 with the low band (+1.00)" in gate_words(paths_of(gates, shares))[-1]
    assert not paths_of([[[0.5, 0.5]]] * 3, shares).correlation.any()


# Words


def test_a_collapse_is_called_by_its_name():
    paths = paths_of([[[0.05, 0.93, 0.02]]] * 4)
    assert paths.collapsed == 1
    text = " ".join(gate_words(paths))
    assert "expert 2 takes 0.93 of the gate, and at least 0.93 at every step" in text and "has collapsed" in text


def test_a_leader_that_changes_is_no_collapse():
    paths = paths_of([[[0.95, 0.05, 0.0]]] * 3 + [[[0.05, 0.95, 0.0]]] * 2)
    assert paths.collapsed is None
    text = " ".join(gate_words(paths))
    assert "expert 1 from step 1 to 3, of expert 2 from step 4 to 5" in text
    assert "expert 3 never takes more than 0.00 of a gate" in text and "collapsed" not in text


def test_other_verdicts():
    assert "hardly routes" in " ".join(gate_words(paths_of([[[0.335, 0.33, 0.335]]] * 3)))
    assert gate_words(paths_of([[[1.0]]])) == ["ink: there is one expert, so there is nothing to route."]
    assert paths_of([[[1.0]]]).collapsed is None


# Files


def test_tables_and_plots(tmp_path):
    paths = paths_of([[[0.2, 0.8], [0.3, 0.7]], [[0.6, 0.4], [0.5, 0.5]]])
    save_gates_by_picture([paths], ["a cat, red", "b"], tmp_path / "gates.csv")
    rows = list(csv.DictReader((tmp_path / "gates.csv").open()))
    assert len(rows) == 2 * 2 * (2 + 3)
    (row,) = [r for r in rows if (r["picture"], r["step"], r["quantity"], r["index"]) == ("2", "1", "gate", "2")]
    assert (row["prompt"], row["timestep"], float(row["value"])) == ("b", "2", pytest.approx(0.7))
    plot_gates([paths, paths], tmp_path / "gates.png")
    with Image.open(tmp_path / "gates.png") as image:
        assert len(image.convert("RGB").getcolors(1_000_000)) > 10
