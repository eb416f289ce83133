"""What a run will take, told while its form is filled in."""

import shutil

import pytest
from PIL import Image
from web_cases import do, make_client, wait_for


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root" / "data").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (16, 16), (number * 60, 0, 0)).save(tmp_path / "root" / "data" / f"{number}.png")
    return tmp_path / "root"


def values(**more):
    given = {"base": "base", "output_dir": "runs/new", "data.train_data_dir": "data", "data.instance_prompt": "a cat"}
    return given | {"data.resolution": "16", **more}


@pytest.mark.slow  # two processes that load a base
def test_memory_and_time_are_told_and_the_newest_form_counts(root, queue, tiny_sd_dir):
    (root / "base").symlink_to(tiny_sd_dir)  # a folder of its own would do as well; links are followed first
    client = make_client(root, queue)
    assert "is outside of" in do(client, "estimate", values=values()).json()["error"]
    (root / "base").unlink()
    shutil.copytree(tiny_sd_dir, root / "base")
    first = do(client, "estimate", values=values()).json()["job"]
    second = do(client, "estimate", values=values(**{"train.steps": "100"})).json()["job"]
    assert queue.job(first).state in ("stopping", "stopped")
    assert client.get(f"/train/estimate?job={second}").json() == {"is_open": True}
    wait_for(lambda: queue.tick() or queue.job(second).state in ("done", "failed"), 120)
    told = client.get(f"/train/estimate?job={second}").json()
    facts = dict(told["facts"])
    assert told["problems"] == [] and facts["pictures"] == "4"
    assert facts["memory, without activations"].endswith("MB") and "about" in facts["training"]
    ways = ("quantization = 4bit", "train.offload = disk", "quantization = 4bit, train.offload = blocks")
    assert all(facts[f"with {way}"].endswith(("MB", "KB")) for way in ways)
    assert client.get(f"/train/estimate?job={first}").json() == {"is_open": False, "facts": [], "problems": []}
    assert not (root / "configs").exists()


def test_what_cannot_be_estimated_is_one_sentence(root, queue):
    client = make_client(root, queue)
    assert "fill it in" in do(client, "estimate", values=values(base="")).json()["error"]
    assert do(client, "estimate", values=3).status_code == 400
    assert client.get("/train/estimate?job=none").status_code == 404
    job = do(client, "estimate", values=values()).json()["job"]  # there is no such base
    wait_for(lambda: queue.tick() or queue.job(job).state == "failed", 60)
    told = client.get(f"/train/estimate?job={job}").json()
    assert told["facts"] == [["pictures", "4"]] and "base" in told["problems"][0]
