"""`fera web` from the command line: what keeps it from starting. What it serves is tested in `tests/web`."""

import socket

import pytest

from fera.cli.main import main


@pytest.fixture(autouse=True)
def own_queue(monkeypatch, tmp_path):
    monkeypatch.setenv("FERA_CACHE", str(tmp_path / "cache"))


def test_a_port_in_use(tmp_path, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["web", str(tmp_path), "--port", str(port)]) == 2
    assert f"--port {port} of 127.0.0.1 is in use; give another, or 0 for a free one" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere is no folder"),
        ([".", "--also", "nowhere"], "nowhere is no folder"),
        ([".", "--port", "70000"], "--port 70000 is no port"),
        ([".", "--host", "no.such.host.invalid"], "cannot serve on no.such.host.invalid"),
    ],
)
def test_what_cannot_be_served(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert main(["web", *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_without_the_extra(monkeypatch, capsys):
    find = lambda name: None if name == "starlette" else object()  # noqa: E731
    monkeypatch.setattr("fera.cli.web.find_spec", find)
    assert main(["web"]) == 2
    assert "needs starlette, which is not installed: pip install 'fera[web]'" in capsys.readouterr().err
