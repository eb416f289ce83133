"""The report in a real browser: it fits a phone and a laptop, and its own rules let all of it work."""

import re
import shutil
import subprocess

import pytest
from report_cases import write_run

from fera.report.contents import gather
from fera.report.folder import read_run
from fera.report.page import render

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# Asks the page how wide it is; it writes the answer where --dump-dom shows it.
PROBE = "<script>document.title = `${document.documentElement.scrollWidth} of ${window.innerWidth}`</script>"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed"),
]


@pytest.fixture(scope="module")
def html(tiny_sd_dir, tmp_path_factory):
    home = tmp_path_factory.mktemp("browser")
    (home / "pictures").mkdir()
    shutil.copy(write_run(tiny_sd_dir, home / "pictures", home / "a-run").joinpath("samples", "step-000000.png"), home)
    return render(gather(read_run(home / "a-run"), None))


def browse(tmp_path, html, width):
    """What the page has become once its scripts ran, and what the browser complained about."""
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"),
            *("--dump-dom", f"file://{tmp_path / 'report.html'}"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_script_and_style_run_without_complaint(tmp_path, html):
    document, complaints = browse(tmp_path, html, 1280)
    assert complaints == []
    assert 'type="range"' in document and "aria-valuetext" in document  # the slider that the script adds


def test_what_is_no_part_of_the_page_does_not_run(tmp_path, html):
    document, complaints = browse(tmp_path, html.replace("</body>", f"{PROBE}</body>"), 1280)
    assert "<title>a-run: fera report</title>" in document and "Content Security Policy" in complaints[0]


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_does_not_scroll_sideways(tmp_path, html, width):
    free = re.sub(r"<meta http-equiv[^>]*>", "", html).replace("</body>", f"{PROBE}</body>")
    document, _ = browse(tmp_path, free, width)
    needed, there = map(int, re.search(r"<title>(\d+) of (\d+)</title>", document).groups())
    assert there == width and needed <= there
