"""`fera report`: what the page says of good, bad, unfinished and hostile runs, and that it is one clean file."""

import dataclasses
import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from report_cases import Page, check_rules, log_records, write_log, write_run

from fera.errors import FeraError
from fera.report.contents import gather
from fera.report.folder import read_run
from fera.report.page import render, save


@pytest.fixture(scope="module")
def template(tiny_sd_dir, tmp_path_factory):
    """A finished run and its pictures, to be copied."""
    home = tmp_path_factory.mktemp("template")
    (home / "pictures").mkdir()
    for number, caption in enumerate(("a red rocket", "a green tree")):
        Image.new("RGB", (20, 16), ("red", "green")[number]).save(home / "pictures" / f"{number}.png")
        (home / "pictures" / f"{number}.txt").write_text(caption)
    return write_run(tiny_sd_dir, home / "pictures", home / "ink")


@pytest.fixture
def run(template, tmp_path):
    """A finished run of one's own."""
    return shutil.copytree(template, tmp_path / "ink")


def page_of(folder):
    return check_rules(render(gather(read_run(folder), None)))


def test_a_good_run(run):
    page = page_of(run)
    assert "The held-out loss fell from 1.5000 to 0.8000 (−46.7%)" in page.text
    for fact in ("1,234", "1 min 05 s", "80 samples", "2 training pictures", "a green tree", "torch 2.0"):
        assert fact in page.text, fact
    assert "Not as it should be" not in page.text and "unfinished" not in page.text
    titles = ("Held-out loss", "Training loss", "Learning rate", "Speed", "Use of the experts", "Entropy of the gate")
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert [label.split(":")[0] for label in labels] == list(titles)
    assert {attributes["class"] for attributes in page.all("span") if "key" in attributes.get("class", "")} == {"key"}


def test_an_expert_has_one_colour_everywhere(run):
    rows = ["adapter,step,timestep,quantity,index,mean,std"]
    for step in (1, 2):
        rows += [f"ink,{step},{900 - step},{kind},{i},{i / 6},0.01" for kind in ("gate", "band") for i in (1, 2, 3)]
    (run / "gates.csv").write_text("\n".join(rows))
    page = page_of(run)
    expert_2 = [li["class"] for li in page.all("li") if li.get("class", "").startswith("expert-2")]
    lines = [path["class"] for path in page.all("path") if "line expert-2" in path["class"]]
    assert len(expert_2) == len(lines) == 2  # over training, and while it draws
    assert "no gate changes by more than" in page.text


def test_settings_that_differ_from_defaults_are_marked(run):
    page = page_of(run)
    changed = sum(row.get("class") == "changed" for row in page.all("tr"))
    assert f"{changed // 2} of " in page.text  # in the short table and in the whole one
    assert "train.learning_rate" in page.text and "0.0001" in page.text


def test_samples_are_in_order_and_few(run):
    for step in range(100, 150):
        shutil.copy(run / "samples" / "step-000000.png", run / "samples" / f"step-{step:06d}.png")
    contents = gather(read_run(run), None)
    steps = [step for step, _ in contents.samples]
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == 149
    assert len(steps) + contents.samples_left_out == 52


def test_an_unfinished_run(run):
    (run / "summary.json").unlink()
    shutil.rmtree(run / "adapter")
    write_log(run, log_records(gates=[0.2, 0.5, 0.3])[:3])
    page = page_of(run)
    assert "This run is not finished" in page.text and "step 20 of 40" in page.text
    assert "There is no checkpoint to go on from" in page.text and "no adapter and no checkpoint" in page.text
    assert "measured once: 1.5000" in page.text


@pytest.mark.parametrize("gates", [[0.02, 0.95, 0.03], [0.85, 0.1, 0.05]])
def test_a_collapse_is_named(run, gates):
    write_log(run, log_records(gates=gates))
    expert = gates.index(max(gates)) + 1
    assert f"The router has collapsed: expert {expert} holds {max(gates):.2f}" in page_of(run).text


def test_an_idle_expert_is_named(run):
    write_log(run, log_records(gates=[0.49, 0.01, 0.5]))
    assert "Expert 2 is hardly used" in page_of(run).text


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([1.0, 1.2], "did not fall: from 1.0000 to 1.2000 (+20.0%)"),
        ([1.0, 0.5, 0.8], "but was lower at step 20 (0.5000)"),
        ([], "No pictures were held out"),
    ],
)
def test_what_the_held_out_loss_did(run, losses, words):
    write_log(run, [{"step": 20 * index, "held_out_loss": loss} for index, loss in enumerate(losses)])
    assert words in page_of(run).text


def test_a_baseline_without_a_gate(run):
    write_log(run, log_records(gates=None))
    config = {"peft_type": "LORA", "r": 12, "lora_alpha": 12, "target_modules": ["to_q"]}
    (run / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    page = page_of(run)
    assert "This run has no gate" in page.text and "LORA" in page.text
    assert not any("expert-" in path["class"] for path in page.all("path"))


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("log.jsonl", b'{"step": 1, "loss": 1}\n{"step": 2, "lo', "1 line could not be read"),
        ("log.jsonl", b"\xff\xfe\x00[[[[\n5\n", "2 lines could not be read"),
        ("log.jsonl", None, "log.jsonl is missing"),
        ("summary.json", b"{", "summary.json cannot be read"),
        ("summary.json", b"[1]", "summary.json holds no JSON object"),
        ("config.toml", b"seed = ", "is not valid TOML"),
        ("config.toml", b'[adaptor]\nr = "4"\n', "unknown key"),
        ("config.toml", None, "cannot read the configuration"),
        ("adapter/adapter_model.safetensors", b"PK\x03\x04", "the adapter"),
        ("adapter/adapter_config.json", b"\x00", "the adapter"),
        ("samples/step-000040.png", b"\x89PNG\r\n", "step-000040.png"),
        ("gates.csv", b"adapter,step\nx,1\n", "gates.csv is no table of gates"),
        ("gates.csv", b"adapter,step,timestep,quantity,index,mean,std\nx,1,9,gate,1,nan,0\n", "not finite"),
        ("gates.csv", b"adapter,step,timestep,quantity,index,mean,std\nx,1,9,gate,1,0.5,0\n", "lacks a band"),
        ("grid.png", b"", "grid.png is empty"),
        ("evaluation.json", b'{"a": 1}', "holds no evaluation"),
        ("analysis.json", b"nothing", "analysis.json cannot be read"),
    ],
)
def test_damage_is_said_and_not_fatal(run, file, damage, words):
    (run / file).unlink() if damage is None else (run / file).write_bytes(damage)
    page = page_of(run)
    assert "Not as it should be" in page.text and words in page.text


def test_wild_numbers_in_the_log_are_gaps(run):
    wild = '{"step": %d, "loss": %s, "gates": [0.5, %s], "gate_entropy": null, "lr": "x", "held_out_loss": %s}\n'
    values = ("NaN", "-Infinity", "1e999", "9" * 400, "[]", "true", '"<b>"')
    (run / "log.jsonl").write_text("".join(wild % (step, v, v, v) for step, v in enumerate(values)) * 2)
    page = page_of(run)
    assert "No pictures were held out" in page.text and "Training loss" not in page.text


def test_evaluation_and_analysis_are_shown(run):
    (run / "evaluation").mkdir()
    metrics = {"loss": 0.75, "loss_by_band": [0.5, 0.25], "fid": None, "style_score": 0.9}
    (run / "evaluation" / "evaluation.json").write_text(json.dumps({"ink": metrics, "base": metrics | {"loss": 1.5}}))
    (run / "analysis").mkdir()
    (run / "analysis" / "analysis.json").write_text(json.dumps({"words": {"Gates": ["Expert 2 leads <b>."], "x": 3}}))
    Image.new("RGB", (30, 20)).save(run / "analysis" / "energies.png")
    page = page_of(run)
    assert "held-out loss (lower is better) 0.75 1.5" in page.text and "style score" in page.text
    assert "FID" not in page.text and "Expert 2 leads <b>." in page.text
    assert "Band energies along the denoising steps" in [image["alt"] for image in page.all("img")]


def test_a_moved_run_finds_the_pictures_in_it(tiny_sd_dir, tmp_path):
    pictures = tmp_path / "old" / "data"
    pictures.mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(pictures / "a.png")
    (pictures / "a.txt").write_text("a red rocket")
    folder = write_run(tiny_sd_dir, pictures, tmp_path / "old", finished=False)
    assert "1 training pictures" in page_of(folder.rename(tmp_path / "new")).text


hostile = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=60),
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "' onmouseover='alert(1)",
            "</style><script>alert(1)</script>",
            "</title></svg><svg onload=alert(1)>",
            "--><!--<iframe srcdoc=x>",
            "{{ page }}{% raw %}",
            "javascript:alert(1)",
            "\x00<\x00script>",
        ]
    ),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hostile)
def test_no_text_becomes_markup(template, text):
    run = read_run(template)
    adapter = {"settings": {text: [text], "num_experts": 3}}
    summary = {"versions": {text: text}, "base": text, "prompts": [text]}
    contents = gather(dataclasses.replace(run, config=None, adapter=adapter, summary=summary), None, [text])
    example = dataclasses.replace(contents.examples[0][1], alt=text or "none")
    contents = dataclasses.replace(
        contents,
        name=text,
        examples=[(text, example)],
        settings=[dataclasses.replace(setting, value=text, meaning=text) for setting in contents.settings[:2]],
        cards_made=text,
    )
    page = check_rules(render(contents))
    plain = Page(render(gather(run, None)))
    assert len(page.all("script")) == len(plain.all("script"))
    if text.isalnum():
        assert text in page.text


def test_a_hostile_run_from_disk(run):
    attack = "</script><img src=x onerror=alert(1)>"
    toml = (run / "config.toml").read_text()
    (run / "config.toml").write_text(toml.replace('prompts = ["a red rocket"', f"prompts = [{json.dumps(attack)}"))
    (run / "summary.json").write_text(json.dumps({"versions": {attack: attack}, "steps": attack, "samples": [attack]}))
    (run / "samples" / f"step-{'x' * 9}.png").write_bytes(b"")
    page = page_of(run)
    assert attack in page.text


def test_the_page_allows_its_own_script_and_style_alone(run):
    import base64
    import hashlib
    import re

    html = render(gather(read_run(run), None))
    policy = next(meta["content"] for meta in Page(html).all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", html, flags=re.S)[1]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FeraError, match="cannot write the report"):
        save("page", tmp_path / "file" / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
