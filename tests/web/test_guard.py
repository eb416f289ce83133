"""Who may ask, what may be reached, and how much may be sent. All input here is harmless."""

import json
import os

import pytest
from report_cases import Page
from web_cases import ADDRESS, do, make_client, write_light_run

from fera.web.guard import MOST_BYTES, is_loopback
from fera.web.places import Places

GETS = ["/", "/train", "/runs/rows", "/run?name=a", "/picture?path=a/samples/step-000000.png"]
TOKEN = "t" * 32


@pytest.fixture
def root(tmp_path):
    write_light_run(tmp_path / "root" / "a")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(b"not yours")
    return tmp_path / "root"


@pytest.mark.parametrize("host", ["127.0.0.1:7373", "localhost:7373", "[::1]:7373", "LOCALHOST"])
def test_own_names_are_answered(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:7373", "10.0.0.1", "", "[", "a:b:c"])
def test_a_name_that_was_made_to_lead_here_is_refused(client, host):
    for path in GETS:
        assert client.get(path, headers={"Host": host}).status_code == 421
    assert client.post("/do/stop", json={"run": "a"}, headers={"Host": host}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:7374"},  # another program on this machine
        {"Origin": ADDRESS, "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_another_site_presses_no_button(client, queue, headers):
    assert client.post("/do/report", json={"run": "a"}, headers=headers).status_code == 403
    assert queue.jobs == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_form_of_another_site_is_no_json(client, queue, kind):
    answer = client.post("/do/report", content=b'{"run": "a"}', headers={"Content-Type": kind})
    assert answer.status_code == 415 and queue.jobs == []


def test_another_site_reads_nothing_but_may_link_here(client):
    for path in GETS:
        assert (
            client.get(path, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}).status_code == 403
        )
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status_code == 200


def test_looking_changes_nothing(client, queue):
    for path in ("/do/stop", "/do/train", "/do/report"):
        assert client.get(path).status_code == 405
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert client.request(method, "/", json={}).status_code in (405, 415)
    assert queue.jobs == []


def test_too_much_is_broken_off(client, queue):
    assert do(client, "preview", values={"base": "x" * MOST_BYTES}).status_code == 413

    def endless():  # without a length
        for _ in range(3):
            yield b" " * (MOST_BYTES // 2)

    answer = client.post("/do/preview", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b"[" * 10_000, b'{"run": 3}', b'{"run": ""}', b"\xff"])
def test_what_is_no_request_gets_a_sentence(client, body):
    for what in ("stop", "preview", "train"):
        answer = client.post(f"/do/{what}", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]


OUT = ["../outside/secret.png", "/etc/hostname", "a/../../outside/secret.png", "link.png", "linked/secret.png", "a\0b"]


@pytest.mark.parametrize("path", OUT)
def test_nothing_outside_is_read(client, root, path):
    os.symlink(root.parent / "outside" / "secret.png", root / "link.png")
    os.symlink(root.parent / "outside", root / "linked")
    answer = client.get("/picture", params={"path": path})
    assert answer.status_code == 404 and b"not yours" not in answer.content
    for page in ("/run", "/run/live", "/run/charts", "/run/samples", "/run/report", "/compare"):
        assert client.get(page, params={"name": path, "run": [path, "a"]}).status_code == 404


def test_only_pictures_are_handed_out(client, root):
    for name in ("config.toml", "log.jsonl", "adapter/x.safetensors"):
        assert client.get("/picture", params={"path": f"a/{name}"}).status_code == 404


def test_a_sample_that_is_a_link_out_is_not_shown(client, root):
    (root / "a" / "samples").mkdir()
    os.symlink(root.parent / "outside" / "secret.png", root / "a" / "samples" / "step-000001.png")
    assert "<img" not in client.get("/run/samples", params={"name": "a"}).text


@pytest.mark.parametrize(
    "values",
    [
        {"output_dir": "../outside/run"},
        {"output_dir": "linked/run"},
        {"output_dir": "b", "data.train_data_dir": "/etc"},
        {"output_dir": "b", "data.cache_dir": "../outside"},
        {"output_dir": "b", "base": "/etc"},
        {"output_dir": "b", "validation.prompts": "a", "validation.sources": "../outside/secret.png"},
        {"output_dir": "b", "adapter.start_from": "linked/x.safetensors"},
        {"output_dir": "b", "data.follow_symlinks": "true"},
    ],
)
def test_no_run_reads_or_writes_outside(client, root, queue, values):
    os.symlink(root.parent / "outside", root / "linked")
    given = {"base": "emoji", "data.train_data_dir": "data", **values}
    for what in ("preview", "check", "train"):
        answer = do(client, what, values=given)
        assert answer.status_code == 400, what
        assert "outside" in answer.json()["error"]
    assert queue.jobs == [] and not (root / "configs").exists()


def test_resuming_does_not_leave_by_what_a_file_says(client, root, queue):
    (root / "a" / "summary.json").unlink()
    text = (root / "a" / "config.toml").read_text()
    for output in ("../outside", "b"):
        (root / "a" / "config.toml").write_text(text.replace('"a"', f'"{output}"'))
        assert do(client, "resume", run="a").status_code == 400
    assert queue.jobs == []


def test_words_of_files_are_no_flags(root, queue):
    text = (root / "a" / "config.toml").read_text()
    (root / "a" / "config.toml").write_text(f'{text}[validation]\nprompts = ["--output=x", "a cat"]\n')
    (root / "a").rename(root / "--a")
    client = make_client(root, queue)
    assert do(client, "analyze", run="--a").status_code == 200
    command = queue.jobs[0].command
    assert command[:4] == ("analyze", "--base=emoji", "--adapter=./--a", "--output=./--a/analysis")
    assert command[-2:] == ("--prompts", "a cat")


def test_texts_of_files_are_escaped(client, root):
    nasty = '<img src=x onerror="alert(1)">'
    run = write_light_run(root / "<b>run")
    (run / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0, "note": nasty}) + "\n")
    for url in ("/", "/runs/rows", "/run?name=%3Cb%3Erun", "/run/charts?name=%3Cb%3Erun", "/run?name=<script>"):
        text = client.get(url).text
        assert "<b>run" not in text and "<img src=x" not in text and "<script>" not in text, url
    assert "&lt;img src=x" in client.get("/run?name=%3Cb%3Erun").text


def test_every_page_stands_alone(client):
    """No inline script or style, no other site; the browser is told so."""
    for url in ("/", "/train", "/run?name=a", "/compare?run=a&run=b", "/nothing"):
        answer = client.get(url)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        for tag, attributes in Page(answer.text).elements:
            assert tag != "style" and not any(name.startswith("on") or name == "style" for name in attributes)
            for name in ("src", "href", "action"):
                assert attributes.get(name, "/")[0] in "/#" or attributes[name] == "data:,", (url, tag, attributes)


def test_a_report_is_shown_and_runs_nothing(client, root):
    (root / "a" / "report.html").write_text("<script>alert(1)</script>")
    answer = client.get("/run/report", params={"name": "a"})
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")


def test_where_others_reach_it_the_token_is_needed(root, queue):
    client = make_client(root, queue, host="0.0.0.0", token=TOKEN)
    for path in [*GETS, "/static?file=web.js", "/?token=wrong", f"/?token={TOKEN[:-1]}", "/?token=%FF"]:
        assert client.get(path).status_code == 401, path
    assert do(client, "stop", run="a").status_code == 401
    client.cookies.set("fera-7373", "wrong")
    assert client.get("/").status_code == 401
    client.cookies.clear()
    answer = client.get(f"/?token={TOKEN}", follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "/"  # the token leaves the address
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"Host": "192.168.0.7:7373"}).status_code == 200
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
    assert do(client, "stop", run="a").status_code == 400  # heard, and a has ended


def test_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.0.7", "::", "example.org", "")))


def test_folders_besides_the_root(tmp_path, root):
    places = Places(root, [tmp_path / "outside"])
    assert places.inside("../outside/secret.png") == tmp_path / "outside" / "secret.png"
    assert places.name(places.inside("../outside/secret.png")) == str(tmp_path / "outside" / "secret.png")
