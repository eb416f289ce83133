"""Studies: reading them, the order of their runs, learning rates, sizes, claims, results."""

import json
import multiprocessing
import os
import socket
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from study_cases import STUDY, make_result, make_study

from fera.comparison.claims import claim, holder
from fera.comparison.data import style_folders
from fera.comparison.findings import find_differences, overview, remarks, tables
from fera.comparison.matching import check_matched
from fera.comparison.plan import Run, configure, differences, portable, runs_of
from fera.comparison.report import write_report
from fera.comparison.results import (
    collect,
    read_collection,
    read_result,
    read_results,
    read_trials,
    unpack,
    write_result,
)
from fera.comparison.study import read_study
from fera.comparison.working import chosen_rate, rates_at_the_edge
from fera.errors import FeraError

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_bundled_studies_are_valid(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for style in tomllib.loads(path.read_text(encoding="utf-8"))["styles"]:
        if "/" in style:  # a folder that a script writes
            Path(style).mkdir(parents=True)
    study = read_study(path)
    for run in runs_of(study):
        configure(study, run, Path("out"), Path("data"), run.rate)


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_bundled_studies_match_their_sizes(path, tmp_path):
    study = read_study(path)
    sizes = check_matched(study, tmp_path, dict.fromkeys(study.style_names, tmp_path))
    assert sizes["lora"].parameters == sizes["fera"].parameters == 215_040 and sizes["fera"].router > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [0]}, "unknown key 'seed' in study.toml; did you mean 'seeds'?"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds lists 1 twice"),
        ({"styles": ["twemojy"]}, "did you mean 'twemoji'?"),
        ({"reference": "rev"}, "there are: ref, new; did you mean 'ref'?"),
        ({"methods": {"data": {}}}, "methods.data cannot be the name of a folder"),
        ({"methods": {"a": {"lable": "A"}}}, "'methods.a.lable' in study.toml; did you mean 'label'?"),
        ({"evaluation": {"loss_sample": 3}}, "did you mean 'loss_samples'?"),
        ({"evaluation": {"loss_samples": 0}}, "loss_samples must be at least 1"),
        ({"learning_rates": {"candidates": [1e-3], "styles": ["noto-v1"]}}, "there are: twemoji, openmoji"),
    ],
)
def test_mistakes_name_the_key(changes, message):
    with pytest.raises(FeraError) as error:
        make_study(**changes)
    assert message in str(error.value)


def test_a_mistake_in_a_method_names_it_and_the_nearest_key():
    study = make_study(methods={"ref": {"train": {"learning_rat": 1.0}}})
    with pytest.raises(FeraError, match="method ref; did you mean 'train.learning_rate'"):
        configure(study, Run("ref", "twemoji", 0), Path("o"), Path("d"), None)


def test_files_that_are_no_studies(tmp_path):
    with pytest.raises(FeraError, match="cannot read the study"):
        read_study(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(FeraError, match="not valid TOML"):
        read_study(tmp_path / "bad.toml")


def test_seeds_are_outermost_and_methods_innermost():
    order = [(run.seed, run.style, run.method) for run in runs_of(make_study())]
    assert order == [(s, y, m) for s in (0, 1) for y in ("twemoji", "openmoji") for m in ("ref", "new")]


def test_trials_come_once_and_before_the_run_that_waits_for_them():
    study = make_study(learning_rates={"candidates": [1e-3, 1e-2], "styles": ["openmoji"], "seed": 9})
    runs = list(runs_of(study))
    assert len(runs) == len(set(runs)) == 8 + 4
    assert runs[:3] == [
        Run("ref", "openmoji", 9, 1e-3),
        Run("ref", "openmoji", 9, 1e-2),
        Run("ref", "twemoji", 0),
    ]
    own = make_study(learning_rates={"candidates": [1e-3, 1e-2]})  # each style chooses its own
    assert sum(run.is_search for run in runs_of(own)) == 2 * 2 * 2
    assert [run.method for run in runs_of(study, ["new"]) if not run.is_search] == ["new"] * 4


def test_a_rate_that_is_given_is_not_searched(tmp_path):
    methods = {
        "fixed": {"train": {"learning_rate": 0.5}},
        "single": {"learning_rates": [0.25]},
        "own": {"learning_rates": [0.1, 0.2]},
    }
    study = make_study(methods=methods, learning_rates={"candidates": [1e-3, 1e-2]})
    assert {run.method for run in runs_of(study) if run.is_search} == {"own"}
    assert chosen_rate(study, tmp_path, "fixed", "twemoji") is None
    assert chosen_rate(study, tmp_path, "single", "twemoji") == 0.25


def test_the_rate_with_the_least_mean_validation_loss_is_chosen(tmp_path):
    search = {"candidates": [1e-3, 1e-2, 1e-1], "styles": ["twemoji", "openmoji"]}
    study = make_study(learning_rates=search)
    table = {("twemoji", 1e-3): 1.0, ("twemoji", 1e-2): 0.9, ("twemoji", 1e-1): 0.1}
    table |= {("openmoji", 1e-3): 1.0, ("openmoji", 1e-2): 0.9, ("openmoji", 1e-1): 5.0}
    with pytest.raises(LookupError):
        chosen_rate(study, tmp_path, "new", "twemoji")
    for (style, rate), loss in table.items():
        result = make_result("new", style, 0, [1.0], rate=rate, validation_loss=loss)
        write_result(result, result.run.folder(tmp_path))
    assert chosen_rate(study, tmp_path, "new", "twemoji") == 1e-2
    at_edge = make_result("new", "twemoji", 0, [1.0], settings={"train.learning_rate": 1e-1})
    assert "at the edge of its candidates" in rates_at_the_edge(study, [at_edge])[0]
    inside = make_result("new", "twemoji", 0, [1.0], settings={"train.learning_rate": 1e-2})
    assert not rates_at_the_edge(study, [inside])


def test_settings_do_not_depend_on_the_machine_and_name_what_changed():
    study = make_study()
    run = Run("new", "twemoji", 0)
    here = portable(study, configure(study, run, Path("a"), Path("b"), 1e-3))
    there = portable(study, configure(study, run, Path("c"), Path("d"), 1e-3))
    assert here == there and not differences(here, there)
    other = portable(study, configure(study, run, Path("a"), Path("b"), 2e-3))
    assert differences(here, other) == ["train.learning_rate is 0.002, was 0.001"]
    older = {name: value for name, value in here.items() if name != "train.noise_offset"}
    assert not differences(older, here)  # a key that fera did not have then, at its default
    assert differences(older, here | {"train.noise_offset": 0.1})
    json.dumps(here)


def test_sizes_that_differ_are_refused(tiny_sd_dir, tmp_path):
    styles = {"twemoji": tmp_path, "openmoji": tmp_path}
    sizes = check_matched(make_study(base=str(tiny_sd_dir)), tmp_path, styles)
    assert sizes["ref"].parameters == sizes["new"].parameters and sizes["ref"].router == 0 < sizes["new"].router
    methods = STUDY["methods"] | {"big": {"adapter": {"r": 3}}}
    with pytest.raises(FeraError, match=r"big has [\d,]+ \(\+50.0%\)"):
        check_matched(make_study(base=str(tiny_sd_dir), methods=methods), tmp_path, styles)
    methods["big"]["matched"] = False
    check_matched(make_study(base=str(tiny_sd_dir), methods=methods), tmp_path, styles)


def test_fewer_training_pictures_are_a_part_of_more(tmp_path):
    def names(count):
        folder = style_folders(make_study(styles=["twemoji"], training_pictures=count), tmp_path)["twemoji"]
        rows = [json.loads(line) for line in (folder / "train" / "metadata.jsonl").read_text().splitlines()]
        assert all((folder / "train" / row["file_name"]).is_file() and row["text"] for row in rows)
        assert (folder / "test").is_dir() and (folder / "validation").is_dir()
        return {row["file_name"] for row in rows}

    few, more = names(3), names(8)
    assert len(few) == 3 and len(more) == 8 and few < more
    with pytest.raises(FeraError, match="training_pictures is 9999"):
        names(9999)


def test_a_folder_of_ones_own_needs_its_splits(tmp_path):
    (tmp_path / "mine" / "train").mkdir(parents=True)
    with pytest.raises(FeraError, match="has no folder validation"):
        style_folders(make_study(styles=[str(tmp_path / "mine")]), tmp_path / "out")


def test_a_claim_excludes_others_and_is_let_go(tmp_path):
    with claim(tmp_path) as ours:
        assert ours and str(os.getpid()) in holder(tmp_path)
        with claim(tmp_path) as again:
            assert not again
        assert holder(tmp_path)  # the loser leaves it alone
    assert holder(tmp_path) is None and not list(tmp_path.iterdir())


def test_a_claim_of_a_dead_process_is_taken_over_but_not_that_of_another_host(tmp_path):
    dead = multiprocessing.get_context("fork").Process(target=int)
    dead.start()
    dead.join()
    path = tmp_path / "claim.json"
    path.write_text(json.dumps({"pid": dead.pid, "host": socket.gethostname(), "born": "1"}))
    with claim(tmp_path) as ours:
        assert ours
    path.write_text(json.dumps({"pid": dead.pid, "host": "elsewhere", "born": "1"}))
    with claim(tmp_path) as ours:
        assert not ours
    # The number lives, but belongs to a younger process.
    path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "born": "an older one"}))
    with claim(tmp_path) as ours:
        assert ours


def all_results():
    return [
        make_result(method, style, seed, [1.0 + 0.01 * seed + (number % 3) * step for number in range(8)])
        for seed in (0, 1)
        for style in ("twemoji", "openmoji")
        for method, step in (("ref", 0.02), ("new", 0.01))
    ]


def test_results_come_back_from_folders_and_from_a_collection(tmp_path):
    study = make_study()
    for result in all_results():
        write_result(result, result.run.folder(tmp_path / "runs"))
        assert read_result(result.run.folder(tmp_path / "runs")) == result
    trial = make_result("new", "twemoji", 0, [1.0], rate=1e-3, samples=None)
    write_result(trial, trial.run.folder(tmp_path / "runs"))
    results = read_results(tmp_path / "runs", study)
    assert len(results) == 8
    collect(results, [trial], study, tmp_path / "all.json")
    text = (tmp_path / "all.json").read_text()
    assert "/somewhere" not in text and text.count('"images"') == 2  # once a style
    again = read_collection(tmp_path / "all.json", study)
    assert [one.samples for one in again] == [one.samples for one in results]
    with pytest.raises(FeraError, match="a collection of study 'tiny', not of 'other'"):
        read_collection(tmp_path / "all.json", make_study(name="other"))


def test_a_collection_is_unpacked_beside_what_is_there(tmp_path):
    study = make_study()
    trial = make_result("new", "twemoji", 0, [1.0], rate=1e-3, samples=None)
    collect(all_results(), [trial], study, tmp_path / "all.json")
    own = replace(all_results()[0], seconds=77.0)
    write_result(own, own.run.folder(tmp_path / "runs"))
    assert unpack(tmp_path / "all.json", study, tmp_path / "runs") == 8  # seven runs and the trial
    assert unpack(tmp_path / "all.json", study, tmp_path / "runs") == 0
    results = read_results(tmp_path / "runs", study)
    assert own in results and len(results) == 8
    assert [one.samples for one in results] == [one.samples for one in read_collection(tmp_path / "all.json", study)]
    assert [one.run for one in read_trials(tmp_path / "runs", study)] == [trial.run]


def test_runs_of_a_collection_and_new_ones_are_collected_together(tmp_path):
    study = make_study()
    results = [replace(one, samples=replace(one.samples, positions=[1 / 3] * 4)) for one in all_results()]
    collect(results[:1], [], study, tmp_path / "some.json")
    unpack(tmp_path / "some.json", study, tmp_path / "runs")
    rounded = read_results(tmp_path / "runs", study)
    assert rounded[0].samples.positions != results[0].samples.positions
    collect([*rounded, *results[1:]], [], study, tmp_path / "all.json")
    assert len(read_collection(tmp_path / "all.json", study)) == 8


def test_finished_runs_without_trials_keep_their_rate(tmp_path):
    study = make_study(learning_rates={"candidates": [1e-3, 1e-2], "styles": ["openmoji"]})
    done = make_result("new", "twemoji", 1, [1.0], settings={"train.learning_rate": 1e-2})
    write_result(done, done.run.folder(tmp_path))
    assert chosen_rate(study, tmp_path, "new", "openmoji") == 1e-2
    other = make_result("new", "openmoji", 0, [1.0], settings={"train.learning_rate": 1e-3})
    write_result(other, other.run.folder(tmp_path))
    with pytest.raises(LookupError):  # they disagree: search
        chosen_rate(study, tmp_path, "new", "openmoji")
    apart = make_study(learning_rates={"candidates": [1e-3, 1e-2]})  # each style chooses its own
    assert chosen_rate(apart, tmp_path, "new", "openmoji") == 1e-3
    trial = make_result("new", "openmoji", 0, [1.0], rate=1e-2, validation_loss=0.5)
    write_result(trial, trial.run.folder(tmp_path))
    with pytest.raises(LookupError):  # a search has begun: its other trial is missing
        chosen_rate(apart, tmp_path, "new", "openmoji")


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(FeraError, match="result.json"):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text('{"format_version": 99}')
    with pytest.raises(FeraError, match="newer fera"):
        read_result(tmp_path)


def test_tables_say_who_is_better_and_what_to_doubt():
    study = make_study()
    results = [replace(result, validation_loss=0.5 + result.seed) for result in all_results()]
    findings = find_differences(study, results)
    table = overview(study, findings)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    difference = "difference x 1000, 95 %"
    assert rows["LoRA"][difference] == "reference" and rows["new"]["lower in"] == "4 of 4"
    mean = 1000 * sum((number % 3) * -0.01 for number in range(8)) / 8
    assert rows["new"][difference].startswith(f"{mean:+.2f} [")
    validation = tables(study, findings)[-1]
    assert validation.rows[1] == ["new", *["1.0000"] * len(study.styles)]  # seeds 0 and 1
    assert not any("seed" in line for line in remarks(study, findings))
    undrawn = find_differences(study, [replace(result, metrics={}) for result in results])
    titles = {table.title for table in tables(study, findings)}
    drawn = titles - {table.title for table in tables(study, undrawn)}
    assert len(drawn) == 2 and all(title.startswith("Pictures") for title in drawn)
    for table in tables(study, findings):
        assert all(len(row) == len(table.columns) for row in table.rows) and table.to_markdown()


def test_pictures_of_a_run_are_paired_with_those_of_the_reference():
    study = make_study()
    better = [
        replace(one, metrics={"fid": 5.0 * (one.style == "twemoji") - 0.25 * (one.method == "new")})
        for one in all_results()
    ]
    made = {table.title[:38]: table for table in tables(study, find_differences(study, better))}
    [row] = made["Pictures of test names, paired differe"].rows
    assert row == ["new", "-0.25 [-0.25, -0.25]"]  # no column of a metric that no run has


def test_costs_of_two_machines_are_not_mixed():
    study = make_study()
    costs = {table.title: table for table in tables(study, find_differences(study, all_results()))}
    assert costs["Costs (means over runs)"].columns[0] == "method"
    fast = {"cpu": "faster", "device": "cpu"}
    results = [replace(one, hardware=fast, seconds_per_training_step=9.0) if one.seed else one for one in all_results()]
    [table] = [one for one in tables(study, find_differences(study, results)) if one.title.startswith("Costs")]
    slow = all_results()[0].seconds_per_training_step
    assert [row[0] for row in table.rows[:2]] != [row[0] for row in table.rows[2:]]
    assert {(row[0] == "faster", float(row[2])) for row in table.rows} == {(True, 9.0), (False, slow)}


def test_one_seed_is_no_claim():
    study = make_study()
    findings = find_differences(study, [result for result in all_results() if result.seed == 0])
    assert overview(study, findings).rows[1][-1] == "one seed: no claim"
    assert any(line.startswith("One seed only") for line in remarks(study, findings))
    assert any(line.startswith("Unfinished: of 4 runs") for line in remarks(study, findings))


def test_a_method_of_another_size_is_in_tables_and_not_in_plots(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("fera.comparison.report.plot_differences", lambda found, *_: drawn.append(found))
    monkeypatch.setattr("fera.comparison.report.plot_places", lambda found, *_: drawn.append(found))
    big = {"adapter": {"r": 4}, "train": {"consistency_weight": 0}, "matched": False}
    study = make_study(methods=STUDY["methods"] | {"big": big})
    results = [*all_results(), *(replace(result, method="big") for result in all_results() if result.method == "new")]
    write_report(study, results, tmp_path)
    assert [[finding.method for finding in found] for found in drawn] == [["ref", "new"]] * 2
    report = (tmp_path / "comparison.md").read_text()
    assert "In the tables alone, being of another size: big." in report and "| big |" in report

    write_report(study, [result for result in results if result.method != "new"], tmp_path)
    assert [finding.method for finding in drawn[-1]] == ["ref", "big"]  # alone, it is what the plots are for


def test_bundled_styles_are_stages_whatever_the_machine(tmp_path):
    stages = [{"train_data_dir": "openmoji", "weight": 1.0}, {"target": True, "weight": 2.0}]
    method = STUDY["methods"]["new"] | {"data": {"stages": stages, "stage_order": "nearest"}}
    study = make_study(styles=["twemoji"], methods=STUDY["methods"] | {"staged": method}, training_pictures=3)
    assert study.stage_styles == ["openmoji"]
    told = []
    for name in ("here", "there"):
        output = tmp_path / name
        folders = style_folders(study, output)
        assert len(list((folders["twemoji"] / "train").glob("*.webp"))) == 3
        assert len(list((output / "data" / "openmoji" / "train").glob("*.webp"))) > 3, "sources are whole"
        config = configure(study, Run("staged", "twemoji", 0), output, folders["twemoji"], None)
        assert [stage.train_data_dir for stage in config.data.stages] == [
            output / "data" / "openmoji" / "train",
            folders["twemoji"] / "train",
        ]
        told.append(portable(study, config))
    assert told[0] == told[1] and told[0]["data.stages"][0]["name"] == "openmoji"
    plain = configure(study, Run("new", "twemoji", 0), tmp_path, tmp_path / "data", None)
    assert differences(portable(study, plain), told[0])[0].startswith("data.stage_order is 'nearest', was 'given'")
