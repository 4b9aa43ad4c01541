"""Take the pictures of a report, whole and its top: ``make demo``, then ``python -m examples.digits.screenshot``.

Needs Playwright (extra ``dev``) and Chromium (``make browser``).
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from examples.browser import find

WIDTH, HEIGHT, TOP, GALLERY, GAP = 1160, 1226, 640, 446, 18


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=Path("demo_report.html"))
    parser.add_argument("--output", type=Path, default=Path("docs/images"), help="folder")
    args = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto(args.page.resolve().as_uri())
        page.wait_for_function("window.report && window.report.ready")
        page.add_style_tag(
            content="nav, [data-part=classes], [data-part=losses], [data-part=courses] { display: none }"
        )
        page.get_by_role("tab").last.click()  # of the pruned run
        page.wait_for_timeout(1000)
        panel, gallery = page.locator("#run1"), page.locator("#run1 [data-part=gallery]")
        shots = [(panel.screenshot(), HEIGHT), (gallery.screenshot(), GALLERY)]
        browser.close()
    whole, top = Image.new("RGB", (WIDTH, HEIGHT + GAP + GALLERY), "#f6f7f9"), 0
    for shot, height in shots:
        picture = Image.open(io.BytesIO(shot))
        whole.paste(picture.crop((0, 0, picture.width, height)), ((WIDTH - picture.width) // 2, top))
        top += height + GAP
    args.output.mkdir(parents=True, exist_ok=True)
    for part, name in ((whole, "report.png"), (whole.crop((0, 0, WIDTH, TOP)), "report_top.png")):
        part.quantize(256).save(args.output / name, optimize=True)


if __name__ == "__main__":
    main()
