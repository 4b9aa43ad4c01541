"""The page in a real browser: no request leaves, no script fails, and what one can touch does what it says.

Needs Playwright and Chromium, see `examples.browser`.
"""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest

from examples import browser as chromium
from lightning_prune.report import render, summarize
from lightning_prune.report.images import Looks
from lightning_prune.report.summary import to_be_seen
from tests.report.conftest import made_record

CHROMIUM = chromium.find()
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `make browser`, or name it by CHROMIUM"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def record():
    record = made_record(num_samples=3000, num_epochs=20)
    record.looks.texts[7] = "<img src=x onerror=alert(1)> a text"
    record.meta["class_names"][0] = "</script><script>alert(1)</script>"
    return record


@pytest.fixture(scope="module")
def folder(tmp_path_factory, record):
    folder = tmp_path_factory.mktemp("pages")
    (folder / "one.html").write_text(render(summarize([record])))
    runs = [record, made_record(num_samples=3000, num_epochs=20, seed=1), made_record(num_samples=3000, seed=2)]
    (folder / "three.html").write_text(render(summarize(runs)))
    return folder


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, folder):
    """Returns a function that opens a page; afterwards, asserts that nothing went wrong in it."""
    wrong = []

    def open_page(name, width=1400, **kwargs):
        page = browser.new_page(viewport={"width": width, "height": 900}, accept_downloads=True, **kwargs)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else wrong.append(r.url))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.goto(f"file://{folder}/{name}.html")
        page.wait_for_function("window.report && window.report.ready !== null")
        return page

    yield open_page
    for context in browser.contexts:
        context.close()
    assert wrong == []


def panel(page, run=0):
    return page.locator(f"#run{run}")


def ids(page, run=0):
    return [
        int(text) for text in panel(page, run).locator("[data-role=table] tbody tr td:nth-child(3)").all_inner_texts()
    ]


def test_every_chart_is_drawn(visit):
    page = visit("one")
    charts = page.locator(".chart")
    assert charts.count() == 7
    for i in range(7):
        assert charts.nth(i).locator("svg path, svg rect").count() > 3, charts.nth(i).get_attribute("data-chart")
    assert page.locator("[data-chart=map] .mark-symbol path").count() == 2500
    text = page.locator("body").inner_text()
    for said in (
        "of the sample-steps saved",
        "Which class is starved?",
        "Under half: class 4",
        "2,500 of 3,000 samples",
    ):
        assert said in text, said
    assert page.locator("#gallery .card img").count() > 10


def test_brushing_filters_the_table(visit, record):
    page = visit("one")
    count = panel(page).locator("[data-role=count]")
    assert count.inner_text() == "3,000 of 3,000 samples"
    page.locator("[data-chart=map]").scroll_into_view_if_needed()
    plot = page.locator("[data-chart=map] svg .background").first.bounding_box()
    page.mouse.move(plot["x"] + plot["width"] * 0.55, plot["y"] + plot["height"] * 0.95)
    page.mouse.down()
    page.mouse.move(plot["x"] + plot["width"] * 0.7, plot["y"] + plot["height"] * 0.5)
    page.mouse.move(plot["x"] + plot["width"] * 0.98, plot["y"] + plot["height"] * 0.05)
    page.mouse.up()
    page.wait_for_function("() => !document.querySelector('[data-role=count]').textContent.startsWith('3,000')")
    low, high, flat, wide = (
        float(panel(page).locator(f"[data-bound={name}]").input_value())
        for name in ("mean0", "mean1", "spread0", "spread1")
    )
    mean, spread = (record.columns[name].astype(np.float16).astype(float) for name in ("mean", "spread"))
    inside = (mean >= low) & (mean <= high) & (spread >= flat) & (spread <= wide)
    shown = int(count.inner_text().split()[0].replace(",", ""))
    assert 0 < shown < 3000
    assert abs(shown - inside.sum()) <= 0.005 * 3000  # losses have three digits in the page
    assert all(low <= mean[i] * 1.001 and mean[i] * 0.999 <= high for i in ids(page))
    panel(page).get_by_role("button", name="Show all", exact=True).click()
    assert count.inner_text() == "3,000 of 3,000 samples"
    assert panel(page).locator("[data-bound=mean0]").input_value() == ""


def test_bounds_do_so_by_keyboard(visit, record):
    page = visit("one")
    page.get_by_label("mean loss at least").focus()
    page.keyboard.type("0.9")
    mean = record.columns["mean"]
    shown = int(panel(page).locator("[data-role=count]").inner_text().split()[0])
    assert abs(shown - (mean >= 0.9).sum()) <= 3
    panel(page).locator("[data-bound=given]").select_option("4")
    given = int(panel(page).locator("[data-role=count]").inner_text().split()[0])
    assert abs(given - ((mean >= 0.9) & (record.columns["given"] == 4)).sum()) <= 3


def test_sorting(visit, record):
    page = visit("one")
    mean = record.columns["mean"]
    assert ids(page)[0] == int(mean.argmax())
    head = panel(page).get_by_role("button", name="times trained")
    head.focus()
    page.keyboard.press("Enter")
    column = panel(page).locator("th", has_text="times trained")
    assert column.get_attribute("aria-sort") == "descending"
    times = record.columns["times"]
    expected = np.lexsort((np.arange(3000), -times))[:20]
    assert ids(page) == expected.tolist()
    page.keyboard.press("Enter")
    assert column.get_attribute("aria-sort") == "ascending"
    assert ids(page) == np.lexsort((np.arange(3000), times))[:20].tolist()
    panel(page).get_by_role("button", name="Next").click()
    assert ids(page) == np.lexsort((np.arange(3000), times))[20:40].tolist()


def test_choosing_shows_losses_and_exports_ids(visit, record):
    page = visit("one")
    hardest = page.locator("[data-role=cards][data-group=hardest] .card")
    sample = int(hardest.first.locator("label span").inner_text().removeprefix("#"))
    assert sample == int(record.columns["mean"].argmax())
    hardest.first.locator("input").check()
    hardest.nth(1).locator("input").check()
    assert page.locator("#chosen").inner_text().startswith("2 chosen")
    assert panel(page).locator("[data-role=courses-of]").inner_text() == "2 of 2 chosen samples."
    assert page.locator("[data-chart=courses] .mark-line path[stroke*=series]").count() == 2
    with page.expect_download() as download:
        page.locator("#chosen").get_by_role("button", name="Export csv").click()
    with open(download.value.path()) as file:
        rows = list(csv.DictReader(file))
    assert int(rows[0]["id"]) == sample
    assert len(rows) == 2
    assert float(rows[0]["mean"]) == pytest.approx(record.columns["mean"][sample], rel=1e-3)
    assert rows[0]["given"] == record.meta["class_names"][record.columns["given"][sample]]
    page.locator("#chosen").get_by_role("button", name="Clear").click()
    assert page.locator("#chosen").is_hidden()
    page.locator("[data-role=choose][data-group=easiest]").click()
    assert page.locator("#chosen").inner_text().startswith("24 chosen")


def test_what_is_filtered_can_be_exported(visit, record):
    page = visit("one")
    page.get_by_label("spread at least").fill("0.5")
    with page.expect_download() as download:
        panel(page).get_by_role("button", name="Export these as csv").click()
    with open(download.value.path()) as file:
        rows = list(csv.DictReader(file))
    assert f"{len(rows):,} of 3,000 samples" == panel(page).locator("[data-role=count]").inner_text()
    assert all(record.columns["spread"][int(row["id"])] > 0.499 for row in rows)


def test_tabs_of_several_runs(visit):
    page = visit("three")
    assert "3 runs side by side" in page.locator("#comparison").inner_text()
    assert page.locator("#disagreed .card").count() == 24
    tabs = page.get_by_role("tab")
    assert [tab.get_attribute("aria-selected") for tab in tabs.all()] == ["true", "false", "false"]
    tabs.first.focus()
    page.keyboard.press("ArrowRight")
    assert tabs.nth(1).get_attribute("aria-selected") == "true"
    assert panel(page).is_hidden()
    page.wait_for_function("() => document.querySelectorAll('#run1 [data-chart=map] .mark-symbol path').length > 100")
    assert len(ids(page, 1)) == 20


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("one", 1400, "dark"), ("one", 400, "light"), ("three", 400, "dark")]
)
def test_it_fits_each_screen(visit, folder, name, width, scheme):
    page = visit(name, width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (light[0] < light[1]) == (scheme == "light")
    assert abs(light[0] - light[1]) > 450  # of 765
    for chart in page.locator(".chart:visible").all():
        assert chart.locator("svg").bounding_box()["width"] <= chart.bounding_box()["width"] + 1
    page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)
    assert (folder / f"{name}-{width}-{scheme}.png").stat().st_size > 50_000


def test_it_prints(visit, folder):
    page = visit("one", color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden()
    assert len(page.pdf()) > 100_000
    several = visit("three")
    several.get_by_role("tab").nth(1).click()
    several.emulate_media(media="print")
    assert [panel(several, i).is_visible() for i in range(3)] == [False, True, False]
    assert panel(several, 1).locator("h2.printed").is_visible()
    for table in several.locator("#comparison table").all():  # nothing is cut off at the edge of the paper
        assert table.bounding_box()["width"] <= several.locator("#comparison").bounding_box()["width"]


def test_fifty_thousand_samples(visit, folder):
    """At most 2 MB without thumbnails, 5 MB with; what is to be drawn and listed is bounded, so that it is quick."""
    record = made_record(num_samples=50_000, looks=False)
    plain = render(summarize([record]))
    assert len(plain.encode()) <= 2_000_000
    rng = np.random.default_rng(0)
    record.looks = Looks()
    record.looks.collect(lambda i: rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), to_be_seen(record))
    page = render(summarize([record]))
    assert 3_000_000 <= len(page.encode()) <= 5_000_000
    (folder / "large.html").write_text(page)
    opened = visit("large")
    assert panel(opened).locator("[data-role=count]").inner_text() == "50,000 of 50,000 samples"
    assert opened.locator("tr").count() < 100
    print("ready after", opened.evaluate("report.ready"), "ms;", len(plain.encode()), len(page.encode()), "bytes")
