"""The demo's page, opened in headless Chromium as a person would: it draws, shows, marks, refuses and hands out."""

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.servers import WITHOUT_PROXY
from tasks.side_by_side import DrawnByModel, Wish, draw_side_by_side, offered_models
from tasks.system import paths
from tests.helpers.chromium import CHROMIUM, needs_chromium
from tests.helpers.drawing_workspace import write_workspace
from tests.helpers.patience import PATIENCE_SECONDS, wait_for
from tests.helpers.project_folder import plain_environment

pytestmark = needs_chromium
pytest.importorskip("nicegui", reason="nicegui is missing: pip install -e '.[demo]' -c constraints.txt")
pytest.importorskip("playwright", reason="playwright is missing: pip install -e '.[dev]' -c constraints.txt")

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright  # noqa: E402

PROMPT = "a photo of a red circle"
QUIET = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync")
"""Chromium asks nobody but the page for anything."""
WITHIN = PATIENCE_SECONDS * 1000
"""Milliseconds."""
expect.set_options(timeout=WITHIN)


@dataclass
class Demo:
    """A running page: its address, its user and password, and the file to which its process writes."""

    url: str
    user: str
    password: str = field(repr=False)
    log: Path


def environment(**own: str) -> dict[str, str]:
    """The environment of a page. NiceGUI starts no ordinary server where it finds pytest's variable."""
    return {name: value for name, value in plain_environment().items() if name != "PYTEST_CURRENT_TEST"} | own


@pytest.fixture(scope="module", autouse=True)
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with the models small, grown and pruned-2 as the working directory."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("workspace")
    os.chdir(folder)
    write_workspace()
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def demo(workspace: Path) -> Iterator[Demo]:
    """The page of the workspace, whose process is ended after the last test."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = workspace / "demo.log"
    with open(log, "wb") as file:
        command = [sys.executable, "-m", "flows.demo"]
        process = subprocess.Popen(command, env=environment(DEMO_PORT=str(port)), stdout=file, stderr=file)
    try:
        wait_for(lambda: "log in as" in log.read_text() or process.poll() is not None, "the page's address")
        assert process.poll() is None, log.read_text()
        wait_for(lambda: socket.create_connection(("127.0.0.1", port)).close() is None, "the page")
        user, _, password = Path(".sana15/password").read_text().strip().partition(":")
        yield Demo(f"http://127.0.0.1:{port}", user, password, log)
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium. Root can run it only without its sandbox."""
    as_root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *as_root])
        yield opened
        opened.close()


def open_page(browser: Browser, demo: Demo) -> tuple[Page, list[str]]:
    """The page, and a list that gets the address of everything that the page asks for."""
    credentials = {"username": demo.user, "password": demo.password}
    page = browser.new_context(http_credentials=credentials, locale="en-US").new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda opened: asked.append(opened.url))
    page.goto(demo.url)
    expect(page.get_by_role("button", name="Draw")).to_be_enabled()
    return page, asked


def draw(page: Page, *models: str, **fields: str) -> None:
    """Fill the fields, tick these models and no others, and press the button."""
    for label, value in fields.items():
        page.get_by_label(label).fill(value)
    for box in page.get_by_role("checkbox").all():
        wanted = "true" if box.inner_text().strip() in models else "false"
        if box.get_attribute("aria-checked") != wanted:
            box.click()
        expect(box).to_have_attribute("aria-checked", wanted)
    page.get_by_role("button", name="Draw").click()


def drawn_cards(page: Page, models: int) -> list[Locator]:
    """The cards of the models when all of them have drawn. Only then the button for the ZIP file is there."""
    expect(page.get_by_role("button", name="Download ZIP")).to_be_visible()
    expect(page.locator("article")).to_have_count(models)
    return page.locator("article").all()


def pixels(image: Locator) -> np.ndarray:
    """The picture that an `img` shows."""
    data = image.get_attribute("src").removeprefix("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def expected(*names: str, pictures: int, seed: int) -> list[DrawnByModel]:
    """What the models draw, computed in this process."""
    models = tuple(model for model in offered_models(paths.OUTPUTS) if model.name in names)
    wish = Wish(PROMPT, models, pictures, seed, steps=2, guidance=2.0)
    return list(draw_side_by_side(wish, lambda _line, _part: None))


def test_the_page_draws_with_the_ticked_models_and_marks_the_judges_choice(browser: Browser, demo: Demo) -> None:
    page, asked = open_page(browser, demo)
    draw(page, "small", "grown", Prompt=PROMPT, Pictures="3", Seed="5")
    for card, one in zip(drawn_cards(page, 2), expected("small", "grown", pictures=3, seed=5), strict=True):
        assert card.get_attribute("data-model") == one.model.name
        millions = re.escape(f"{one.model.parameters / 1e6:.2f}")
        expect(card).to_contain_text(re.compile(rf"{one.model.depth} blocks? · {millions} M parameters · \d+\.\d\d s"))
        best, *every = card.locator("figure").all()
        np.testing.assert_array_equal(pixels(best.locator("img")), one.pictures_NHW3[one.chosen])
        assert len(every) == 3
        for index, figure in enumerate(every):
            np.testing.assert_array_equal(pixels(figure.locator("img")), one.pictures_NHW3[index])
            star = "★ " if index == one.chosen else ""
            expect(figure).to_have_text(f"{star}{one.scores_N[index]:#.3g}")
            assert ("chosen" in (figure.get_attribute("class") or "").split()) == bool(star)
    here = demo.url.partition("://")[2]
    assert [url for url in asked if not url.startswith((f"http://{here}/", f"ws://{here}/", "data:"))] == []
    assert demo.password not in demo.log.read_text()


def test_the_zip_that_is_downloaded_has_the_pictures_of_the_page(browser: Browser, demo: Demo) -> None:
    page, _ = open_page(browser, demo)
    draw(page, "small", Prompt=PROMPT, Pictures="2", Seed="1")
    drawn_cards(page, 1)
    with page.expect_download(timeout=WITHIN) as download:
        page.get_by_role("button", name="Download ZIP").click()
    assert download.value.suggested_filename == "sana15-seed-1.zip"
    with zipfile.ZipFile(download.value.path()) as archive:
        record = json.loads(archive.read("scores.json"))
        (one,) = expected("small", pictures=2, seed=1)
        for number, picture in enumerate(one.pictures_NHW3):
            np.testing.assert_array_equal(np.asarray(Image.open(archive.open(f"small/{number:04}.png"))), picture)
    assert (record["prompt"], record["seed"]) == (PROMPT, 1)


def test_without_a_judge_the_page_shows_pictures_without_scores(browser: Browser, workspace: Path, demo: Demo) -> None:
    judge, elsewhere = workspace / paths.JUDGE, workspace / "elsewhere"
    judge.rename(elsewhere)
    try:
        page, _ = open_page(browser, demo)
        expect(page.get_by_text("This experiment has no judge")).to_be_visible()
        draw(page, "grown", Prompt=PROMPT, Pictures="2")
        (card,) = drawn_cards(page, 1)
    finally:
        elsewhere.rename(judge)
    best, *every = card.locator("figure").all()
    expect(best).to_have_text("the first picture")
    np.testing.assert_array_equal(pixels(best.locator("img")), pixels(every[0].locator("img")))
    assert [figure.inner_text().strip() for figure in every] == ["", ""]
    expect(page.locator(".chosen")).to_have_count(0)


def test_bad_input_is_one_line_on_the_page_and_the_next_wish_is_drawn(browser: Browser, demo: Demo) -> None:
    page, _ = open_page(browser, demo)
    error = page.locator(".status.error")
    for models, fields, line in (
        (("small",), {"Prompt": " "}, "the prompt is empty: write what to draw"),
        ((), {"Prompt": PROMPT}, "no model is ticked: tick at least one"),
        (("small",), {"Pictures": "0"}, "pictures is 0: draw 1 to 64"),
        (("small",), {"Pictures": "2", "Steps": ""}, "steps is empty: write a number"),
        (("small",), {"Steps": "2", "Guidance": "0.5"}, "guidance is 0.5: take 1 (none) to 100"),
    ):
        draw(page, *models, **fields)
        expect(error).to_have_text(line)
        expect(page.locator("article")).to_have_count(0)
    draw(page, "small", Guidance="2")
    drawn_cards(page, 1)
    expect(error).to_have_count(0)


@pytest.mark.parametrize("path", ["/", "/_nicegui_ws/socket.io/?EIO=4&transport=polling", "/_nicegui/auto/static/x"])
def test_nothing_of_the_page_is_had_without_the_password(demo: Demo, path: str) -> None:
    for credentials in (None, f"{demo.user}:another"):
        request = urllib.request.Request(demo.url + path)
        if credentials:
            request.add_header("Authorization", f"Basic {base64.b64encode(credentials.encode()).decode()}")
        with pytest.raises(urllib.error.HTTPError) as refused:
            WITHOUT_PROXY.open(request, timeout=PATIENCE_SECONDS)
        assert refused.value.code == 401
        refused.value.close()


@pytest.mark.parametrize(
    ("arguments", "variables", "line"),
    [
        (["--outputs", "runs/nowhere"], {}, "runs/nowhere/outputs is no folder"),
        ([], {"DEMO_PORT": "many"}, "DEMO_PORT is 'many': it must be a port"),
    ],
)
def test_the_command_refuses_bad_input_with_one_line(
    arguments: list[str], variables: dict[str, str], line: str
) -> None:
    command = [sys.executable, "-m", "flows.demo", *arguments]
    done = subprocess.run(
        command, env=environment(**variables), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert line in done.stderr
