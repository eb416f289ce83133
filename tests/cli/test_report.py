"""`fera report` from the command line, with fresh pictures of tiny models."""

import shutil

import pytest
from report_cases import check_rules, write_run

from fera.cli.main import main
from fera.training.folder.manifest import write_manifest


@pytest.fixture
def run(tiny_sd_dir, image_folder, tmp_path):
    return write_run(tiny_sd_dir, image_folder, tmp_path / "ink")


def test_it_draws_base_and_adapted_and_traces_the_gates(run, capsys):
    assert main(["report", str(run), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = check_rules((run / "report.html").read_text(encoding="utf-8"))
    images = {image["alt"]: image["src"] for image in page.all("img")}
    for prompt in ("a red rocket", "a blue house"):
        base, adapted = images[f"{prompt}, drawn by the base"], images[f"{prompt}, drawn with the adapter"]
        assert base != adapted
        assert f"{prompt}, a real picture" in images
    assert "2 denoising steps, guidance 1, seeds from 0" in page.text
    assert "What the router sees" in page.text and "What it answers" in page.text
    assert main(["report", str(run), "--no-draw"]) == 0  # its own file is replaced
    assert "drawn by the base" not in (run / "report.html").read_text(encoding="utf-8")


def test_other_prompts_and_sampling(run, tmp_path):
    options = ["--prompts", "a green tree", "--steps", "1", "--seed", "7", "--guidance-scale", "1.5"]
    assert main(["report", str(run), "--output", str(tmp_path / "out" / "r.html"), *options]) == 0
    page = check_rules((tmp_path / "out" / "r.html").read_text(encoding="utf-8"))
    assert "1 denoising steps, guidance 1.5, seeds from 7" in page.text
    assert not (run / "report.html").exists()


def test_without_the_base_it_reports_all_the_same(run, tiny_sd_dir, tmp_path, capsys):
    toml = (run / "config.toml").read_text(encoding="utf-8")
    (run / "config.toml").write_text(toml.replace(str(tiny_sd_dir), str(tmp_path / "gone")), encoding="utf-8")
    assert main(["report", str(run)]) == 0
    assert "no fresh pictures: base" in check_rules((run / "report.html").read_text(encoding="utf-8")).text
    assert main(["report", str(run), "--draw"]) == 2
    assert "gone" in capsys.readouterr().err
    assert main(["report", str(run), "--draw", "--base", str(tiny_sd_dir)]) == 0


def test_a_checkpoint_serves_where_the_run_is_not_finished(run):
    checkpoint = run / "checkpoints" / "step-000020"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.pt").write_bytes(b"")
    shutil.move(run / "adapter", checkpoint / "adapter")
    write_manifest(checkpoint, {"format_version": 2, "step": 20})
    (run / "summary.json").unlink()
    assert main(["report", str(run), "--draw"]) == 0
    text = check_rules((run / "report.html").read_text(encoding="utf-8")).text
    assert "--resume goes on from it" in text and "the one of checkpoint step-000020" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no such folder"),
        (["empty"], "there is no config.toml, log.jsonl, summary.json or adapter"),
        (["ink", "--output", "mine.html"], "exists and is no report"),
        (["ink", "--output", "empty"], "is a folder"),
        (["ink", "--no-draw", "--prompts", "a"], "--draw is off: draw these prompts, or draw nothing"),
        (["ink", "--steps", "0", "--draw"], "at least 1"),
        (["ink", "--drow"], "did you mean --draw"),
    ],
)
def test_mistakes_are_said_in_a_line(run, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.html").write_text("<p>my own page</p>")
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in " ".join(error.split()) and "Traceback" not in error
    assert (tmp_path / "mine.html").read_text() == "<p>my own page</p>"
