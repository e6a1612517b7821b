"""A picture of TensorBoard's own page with several runs, for README.

    python -m studies.screenshot runs/exercise_1_1/default runs/exercise_1_2/default

Starts TensorBoard on the folders, opens its page in headless Chromium and writes
assets/tensorboard.png. Needs playwright, and a Chromium on this machine.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from playwright.sync_api import sync_playwright
from tensorboard import program

from exits import exit_cleanly, read_flags

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Flags:
    runs: tyro.conf.Positional[tuple[str, ...]]
    """run folders that stand side by side"""
    page: str = "custom_scalars"
    """or timeseries, images, text, hparams"""
    out: str = "assets/tensorboard.png"
    width: int = 1280
    """pixels"""
    height: int = 800


@exit_cleanly
def main(flags):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise FileNotFoundError(f"none of {', '.join(BROWSERS)} is here: install one of them")
    for run in flags.runs:
        if not any(Path(run).glob("**/events*")):
            raise FileNotFoundError(f"{run} holds no TensorBoard files: name folders of runs")
    with tempfile.TemporaryDirectory() as folder:
        for run in flags.runs:  # names as in runs/, without what lies beside
            name = "-".join(Path(run).resolve().parts[-3:])
            Path(folder, name).symlink_to(Path(run).resolve() / "tensorboard")
        board = program.TensorBoard()
        board.configure(logdir=folder, load_fast="false")
        address = board.launch()
        with sync_playwright() as driver:
            window = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            size = {"width": flags.width, "height": flags.height}
            page = window.new_page(viewport=size)
            page.goto(f"{address}#{flags.page}")
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(8000)  # milliseconds in which the curves are drawn
            page.screenshot(path=flags.out)
            window.close()
    print(f"written to {flags.out}")


if __name__ == "__main__":
    main(read_flags(Flags))
