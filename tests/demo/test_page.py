"""The page in a real browser, as visitors use it."""

from __future__ import annotations

import json
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sa2va.media.open import open_media
from sa2va.writers.video_encoder import VideoEncoder

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install -y chromium")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ANSWERS = "#picture-chat .bubble.model:not(:has(.dots)), #picture-chat .bubble.error"


#: Keeps what the page shows while a clip is followed: the words, and the last frame's address.
WATCH_PROGRESS = """() => {
  window.progress = [];
  new MutationObserver(() => {
    const words = document.querySelector("#clip-live p")?.innerText ?? "";
    window.progress.push([words, document.querySelector("#clip-live img")?.src ?? ""]);
  }).observe(document.body, { subtree: true, childList: true });
}"""
#: Presses Cancel once the first frame is there.
PRESS_CANCEL = """() => new MutationObserver((_, observer) => {
  const cancel = document.querySelector("#clip-cancel");
  if (cancel.disabled || !document.querySelector("#clip-live img")) return;
  observer.disconnect();
  cancel.click();
}).observe(document.body, { subtree: true, childList: true })"""


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A visitor: their browser window, and what it asked of whom."""

    def __init__(self, browser: sync_api.Browser, address: str, *, width: int = 1280, dark: bool = False):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)
        self.page.wait_for_selector("#picture-stage .stage img")

    def answer(self, number: int) -> str:
        """The text of the answer of that number, from 1, as soon as it is complete."""
        one = self.page.locator(ANSWERS).nth(number - 1)
        one.wait_for()
        return " ".join(one.inner_text().split())

    def find(self, text: str) -> None:
        self.page.locator("#picture-mode").get_by_text("Find").click()
        self.say(text)

    def ask(self, text: str) -> None:
        self.page.locator("#picture-mode").get_by_text("Ask").click()
        self.say(text)

    def say(self, text: str) -> None:
        self.page.locator("#picture-text textarea").press_sequentially(text)
        if text.endswith("?"):  # which chooses Ask, sooner than a hand reaches the next key
            self.page.wait_for_function("document.querySelector('#picture-mode input:checked').value === 'Ask'")
        self.page.keyboard.press("Enter")

    def drop(self, file: Path) -> None:
        """Give the page another picture, and wait until it is shown."""
        shown = self.picture()
        self.page.locator("#picture-drop input[type=file]").set_input_files(file)
        self.page.wait_for_function("old => document.querySelector('#picture-stage img').src !== old", arg=shown)

    def picture(self) -> str:
        return self.page.locator("#picture-stage img").get_attribute("src") or ""

    def point(self, x: float, y: float) -> tuple[float, float]:
        """A place in the picture, by shares of its width and height, in the window."""
        box = self.page.locator("#picture-stage img").bounding_box()
        assert box is not None
        return box["x"] + x * box["width"], box["y"] + y * box["height"]


@pytest.fixture(scope="module")
def long_visit(browser, address) -> Iterator[Visit]:
    visit = Visit(browser, address)
    yield visit
    visit.context.close()


@pytest.fixture(scope="module")
def guest(browser, address) -> Visit:
    """Another visitor, at night and on a phone; the last test sends them away."""
    return Visit(browser, address, width=400, dark=True)


@pytest.fixture
def visit(long_visit) -> Iterator[Visit]:
    """The same visitor in every test, who puts what was there aside; loading a page takes seconds."""
    yield long_visit
    assert long_visit.complaints == []
    long_visit.page.get_by_role("tab", name="Picture").click()
    long_visit.page.locator("#picture-clear").click()
    long_visit.page.locator("#picture-chat .welcome").wait_for()


def test_a_conversation_about_a_picture(visit):
    assert visit.answer(1) == "the yellow cloud0.95 something with wheels0.93 the letter Z0.86"  # there on arrival
    colors = visit.page.eval_on_selector_all(
        "#picture-chat mark, .object", "all => all.map(one => one.style.getPropertyValue('--object'))"
    )
    assert len(colors) == 6 and colors[:3] == colors[3:] and len(set(colors)) == 3  # phrases as their masks
    visit.say("the purple dog")
    assert "the purple dog: nothing found" in visit.answer(2)
    visit.say("What color is the car?")  # the question mark turns Find into Ask
    assert visit.answer(3) == "blue"
    visit.say("And the letter?")
    assert visit.answer(4) == "purple letter Z"  # without what was said before, the model is at a loss


def test_marks_masks_and_downloads(visit, tmp_path):
    page = visit.page
    page.locator("[data-example='0'] >> visible=true").click()
    visit.answer(1)
    page.mouse.click(*visit.point(0.2, 0.2))
    assert visit.answer(2).startswith("A medium blue car.")
    page.mouse.move(*visit.point(0.76, 0.5))
    page.mouse.down()
    page.mouse.move(*visit.point(0.95, 0.75), steps=3)
    page.mouse.up()
    assert visit.answer(3).startswith("A small purple letter Z.")
    page.locator("button[data-tool=stroke]").click()
    page.mouse.move(*visit.point(0.4, 0.6))
    page.mouse.down()
    page.mouse.move(*visit.point(0.55, 0.6), steps=3)
    page.mouse.up()
    assert visit.answer(4).startswith("A large yellow cloud.")
    assert page.locator(".object").count() == 6 and page.locator(".object[aria-pressed=true]").count() == 1

    with_mask = visit.picture()
    page.locator(".object[aria-pressed=true]").click()
    page.wait_for_function("old => document.querySelector('#picture-stage img').src !== old", arg=with_mask)
    page.locator(".object").nth(2).click()
    page.wait_for_selector(".object:nth-child(3)[aria-pressed=true]")
    saved = {}
    for kind in ("masks", "json", "cutout"):
        with page.expect_download() as download:
            page.locator(f"[data-save={kind}]").click()
        saved[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[kind])
    names = zipfile.ZipFile(saved["masks"]).namelist()
    assert {"masks.png", "003-the-letter-z.png"} <= set(names) and not any("cloud" in name for name in names)
    with Image.open(saved["cutout"]) as cutout:
        opaque = np.asarray(cutout)[:, :, 3] > 0
    assert cutout.size == (256, 256) and opaque[130:190, 195:240].mean() > 0.2 and not opaque[:, :150].any()
    answers = json.loads(saved["json"].read_text())["answers"]
    assert [answer["text"] for answer in answers[-1:]] == ["A large yellow cloud."]


def test_ones_own_picture_and_nobody_elses(visit, guest, tmp_path):
    own = Image.open(EXAMPLES / "shapes.png").rotate(180)
    own.save(tmp_path / "mine.png")
    visit.drop(tmp_path / "mine.png")
    assert visit.picture() != guest.picture()
    visit.find("the yellow cloud")
    assert visit.answer(1).startswith("the yellow cloud")
    guest.ask("What color is the car?")
    assert guest.answer(2) == "blue"
    assert visit.page.locator(ANSWERS).count() == 1
    assert "yellow cloud" in guest.answer(1) and guest.page.locator(ANSWERS).count() == 2


@pytest.mark.slow  # a browser that has to wait for a core shows only the end
def test_progress_is_shown_while_a_clip_is_followed(visit):
    page = visit.page
    page.get_by_role("tab", name="Video").click()
    page.wait_for_selector("#clip-keys figure:nth-child(5)")
    page.evaluate(WATCH_PROGRESS)
    page.locator("#clip-send").click()
    page.wait_for_selector("#clip-result video")
    seen = page.evaluate("window.progress")
    assert any(re.fullmatch(r"Frame \d+ of \d+, \d+\.\d frames/s, \d+ s left", words) for words, _ in seen)
    assert any(picture.startswith("data:image/jpeg") for _, picture in seen)


def test_a_clip(visit):
    page = visit.page
    page.get_by_role("tab", name="Video").click()
    page.wait_for_selector("#clip-keys figure:nth-child(5)")
    page.locator("#clip-to input[type=number]").fill("1")
    page.locator("#clip-to input[type=number]").press("Enter")
    page.locator("#clip-send").click()
    page.wait_for_selector("#clip-result video")
    page.wait_for_function("document.querySelector('#clip-result video').readyState >= 2")  # it plays here
    assert page.evaluate("document.querySelector('#clip-result video').duration") == pytest.approx(1, abs=0.3)
    assert "the orange hat" in page.locator("#clip-chat").inner_text()
    with page.expect_download() as download:
        page.get_by_text("Masks (PNG)").locator("visible=true").click()
    assert len([name for name in zipfile.ZipFile(download.value.path()).namelist() if name.endswith(".png")]) == 8
    page.locator("[data-example='1'] >> visible=true").click()
    page.locator("#clip-chat .bubble.model", has_text=re.compile("^orange$")).wait_for()


def test_a_clip_is_followed_no_further_after_cancel(visit, tmp_path):
    frames = [decoded.pixels for decoded in open_media(EXAMPLES / "shapes.mp4")]
    with closing(VideoEncoder(tmp_path / "long.mp4", size=frames[0].shape[:2], fps=8)) as video:
        for _ in range(20):  # longer than any page needs to show the first frame
            for pixels in frames:
                video.write(pixels)
    page = visit.page
    page.get_by_role("tab", name="Video").click()
    page.wait_for_selector("#clip-keys figure:nth-child(5)")
    page.locator("#clip").get_by_label("Clear").click()
    page.locator("#clip input[type=file]").set_input_files(tmp_path / "long.mp4")
    page.wait_for_function("document.querySelector('#clip-to input[type=number]').value == '60'")
    page.evaluate(PRESS_CANCEL)
    page.locator("#clip-text textarea").fill("the orange hat")
    page.locator("#clip-send").click()
    page.locator("#clip-live", has_text="Stopped after").wait_for()


def test_clear_forgets(visit):
    visit.find("the yellow cloud")
    visit.answer(1)
    visit.page.locator("#picture-clear").click()
    visit.page.locator("#picture-chat .welcome").wait_for()
    assert visit.page.locator(".object").count() == 0


def test_nothing_leaves_this_machine(guest, address):
    guest.page.get_by_role("tab", name="Video").click()
    guest.page.wait_for_selector("#clip-keys figure")
    elsewhere = [url for url in guest.asked if not url.startswith((address, "data:", "blob:"))]
    assert len(guest.asked) > 20 and elsewhere == []
    assert "default-src 'self'" in guest.page.request.get(address).headers["content-security-policy"]


def test_a_narrow_window_and_a_dark_one(guest):
    for tab in ("Picture", "Video"):
        guest.page.get_by_role("tab", name=tab).click()
        assert guest.page.evaluate("document.documentElement.scrollWidth") <= 400  # nothing sticks out
    assert guest.page.locator("body.dark").count() == 1
    guest.page.locator("[data-theme-toggle]").click()
    assert guest.page.locator("body.dark").count() == 0


def test_who_leaves_is_forgotten(visit, guest, files):
    (root,) = files.glob("sa2va-demo-*/visitors")
    before = set(root.iterdir())
    assert len(before) >= 2 and all(list(folder.rglob("clip.mp4")) for folder in before)
    guest.context.close()
    for _ in range(300):
        if (left := set(root.iterdir())) != before:
            break
        time.sleep(0.1)
    assert len(before - left) == 1 and left < before
