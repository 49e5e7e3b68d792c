"""The page in a browser: at two widths, light and dark, without network, by mouse and keyboard. `make page-check`."""

import os
import shutil
from pathlib import Path

import pytest

from nearstep.reports.page.write import write_report
from tests.reports.page.made_run import make_run

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs Playwright, axe and Chromium: make page-check sets them up"
)
pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SIZES = {"desktop": (1440, 900), "phone": (390, 844)}
IMAGES = os.environ.get("NEARSTEP_PAGE_IMAGES")  # where `make page-check` keeps its pictures
DEMO = Path(os.environ.get("NEARSTEP_PAGE_RUN", "nowhere"))  # a real run, to look at beside the made one


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.fail("there is no chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The reports that are looked at, by name."""
    folder = tmp_path_factory.mktemp("pages")
    made = write_report(make_run(folder / "made"), folder / "made.html")
    return {"made": made} | ({"demo": write_report(DEMO, folder / "demo.html")} if DEMO.is_dir() else {})


class Opened:
    """One page as a reader has it, with what it said and asked for."""

    def __init__(self, browser, file, size="desktop", scheme="light"):
        width, height = SIZES[size]
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True, reduced_motion="reduce",
            has_touch=size == "phone", is_mobile=size == "phone",
        )  # fmt: skip
        self.page = self.context.new_page()
        self.problems, self.asked = [], []
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("#groups canvas")

    def scroll_to(self, part):
        self.page.evaluate("part => document.querySelector(part).scrollIntoView()", part)
        self.page.wait_for_timeout(600)  # charts that come into view are drawn

    def text(self, part):
        return self.page.inner_text(part)

    def picture(self, name):
        if IMAGES is not None:
            save_small(self.page.screenshot(), Path(IMAGES) / f"{name}.png")


def save_small(png, path):
    from io import BytesIO

    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(BytesIO(png)).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < 200_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_all_parts_are_seen_without_network_errors_or_barriers(browser, pages, size, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for name, file in pages.items():
        opened = Opened(browser, file, size, scheme)
        page = opened.page
        for part in ("#curves", "#update", "#samples", "#tokens", "#critic", "#run"):
            opened.scroll_to(part)
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]  # nothing sticks out
        assert page.locator("#groups canvas").count() >= 10
        assert page.locator("#sample-table tbody tr").count() >= 8
        assert page.locator("#strip .token").count() >= 5
        assert page.locator("#critic canvas").count() >= 3
        found = axe.run(page).response["violations"]
        serious = [(each["id"], [node["target"] for node in each["nodes"]][:3]) for each in found
                   if each["impact"] in ("serious", "critical")]  # fmt: skip
        assert (name, serious) == (name, [])
        assert (name, opened.problems) == (name, [])
        assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []
        assert page.evaluate("window.attacked") is None
        opened.context.close()


def test_keys_lead_from_update_to_sample_to_token(browser, pages):
    opened = Opened(browser, pages["made"])
    page = opened.page
    assert opened.text("#update-place") == "update 40 of 40"
    for key, place in [("p", "39"), ("g", "1"), ("n", "2"), ("G", "40")]:
        page.keyboard.press(key)
        assert opened.text("#update-place") == f"update {place} of 40"
    page.keyboard.press("j")
    first = opened.text("#sample h3")
    page.keyboard.press("j")
    assert opened.text("#sample h3") != first
    page.keyboard.press("k")
    assert opened.text("#sample h3") == first
    page.click("#sample button:has-text('See its tokens')")
    page.focus("#strip")
    assert opened.text("#token-numbers h3") == "Token 1 of 12"
    page.keyboard.press("ArrowRight")
    assert opened.text("#token-numbers h3") == "Token 2 of 12"
    page.keyboard.press("End")
    assert opened.text("#token-numbers h3") == "Token 12 of 12"
    page.keyboard.press("/")
    page.keyboard.type("POST 0:")
    assert 0 < page.locator("#sample-table tbody tr").count() < 20
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#keys[open]").count() == 1


def test_one_cursor_for_all_curves_and_a_click_that_chooses(browser, pages):
    opened = Opened(browser, pages["made"])
    page = opened.page
    opened.scroll_to("#curves")
    box = page.locator("#groups .plot canvas").nth(0).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_timeout(200)
    places = page.eval_on_selector_all(".cursor", "all => all.slice(0, 6).map(each => each.style.transform)")
    assert len(places) == 6
    assert len(set(places)) == 1
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_timeout(500)
    assert 15 < int(opened.text("#update-place").split()[1]) < 26


def test_samples_are_sorted_and_the_same_prompt_is_compared_word_by_word(browser, pages):
    opened = Opened(browser, pages["made"])
    page = opened.page
    page.click("#sample-table th button:has-text('score')")
    numbers = [float(text.replace("−", "-")) for text in page.locator("#sample-table td.of-score").all_inner_texts()]
    assert numbers == sorted(numbers, reverse=True)
    page.locator("#sample-table tbody tr").nth(0).click()
    assert page.locator("#sample .history del, #sample .history ins").count() > 0


def test_the_theme_can_be_chosen_and_charts_follow(browser, pages):
    opened = Opened(browser, pages["made"], scheme="dark")
    before = opened.page.locator("#groups .plot").nth(0).screenshot()
    opened.page.click("#theme")
    opened.page.wait_for_timeout(300)
    assert opened.page.evaluate("document.documentElement.dataset.theme") == "light"
    assert opened.page.locator("#groups .plot").nth(0).screenshot() != before


def test_pictures(browser, pages):
    if IMAGES is None:
        pytest.skip("pictures are kept by make page-check alone")
    file = list(pages.values())[-1]
    for name, size, scheme, part in [
        ("report_curves", "desktop", "light", "#curves"),
        ("report_samples", "desktop", "light", "#samples"),
        ("report_tokens", "desktop", "dark", "#tokens"),
        ("report_phone", "phone", "light", "#summary"),
    ]:
        opened = Opened(browser, file, size, scheme)
        if part in ("#samples", "#tokens"):
            opened.page.select_option("#which", "tokens")
            opened.page.keyboard.press("Escape")
            opened.page.evaluate("document.activeElement.blur()")
            opened.page.keyboard.press("j")
        opened.scroll_to(part)
        opened.picture(name)
        opened.context.close()
