"""Frames per second of the page of `medssl explore` in headless Chromium, for 5,000 and 50,000 points.

    python benchmarks/speed_explorer.py

Needs Chromium and its driver. Points, columns and neighbours are random; there are no pictures, which are drawn only for the scan
pointed at. A frame is a call of requestAnimationFrame while the mouse moves as fast as the page takes its events. Without a
graphics card Chromium draws by SwiftShader on the processor, so these are lower bounds for a computer with one.
"""

import argparse
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from selenium import webdriver

from medssl.reporting.explorer import Exploration, Map, Neighbours, explorer_page
from medssl.reporting.faithfulness import Faithfulness

FLAGS = (
    "--headless=new --no-sandbox --disable-dev-shm-usage --window-size=1300,900 --enable-unsafe-swiftshader --disable-quic "
    "--no-first-run --disable-background-networking --disable-component-update --disable-sync"
)
COUNT = """window.frames_at = []; window.counting = true;
requestAnimationFrame(function next(t) { window.frames_at.push(t); if (window.counting) requestAnimationFrame(next); });"""
EVENTS = 30  # of the mouse in a measurement


def page(n: int) -> str:
    """Return the page of n random points in 30 groups, with 2 columns and 8 neighbours each."""
    rng = np.random.default_rng(0)
    xy = rng.normal(size=(30, 2))[rng.integers(0, 30, n)] * 8 + rng.normal(size=(n, 2))
    ids = np.array([f"s{i:05d}" for i in range(n)])
    near = Neighbours(rng.integers(0, n, (n, 8)).astype(np.int32), rng.random((n, 8)).astype(np.float32))
    faithful = Faithfulness(0.9, 0.8, 0.3, np.full(n, 0.9, np.float32), 10)
    columns = {
        "kind": np.array([*"abcde"], object)[rng.integers(0, 5, n)],
        "age": rng.normal(60, 9, n).astype(np.float32),
    }
    return str(explorer_page(Exploration("speed", ids, ids, columns, [Map("PCA", xy, faithful)], near, near)))


@contextmanager
def browser() -> Iterator[Any]:
    """Give a headless Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in FLAGS.split():
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def send(driver: Any, kind: str, x: float, y: float, **more: Any) -> None:
    """Send one event of the mouse, and return when the page has taken it."""
    driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y} | more)


def rate(driver: Any, act: Callable[[int], None]) -> float:
    """Return frames per second while `act` is called EVENTS times."""
    driver.execute_script(COUNT)
    for k in range(EVENTS):
        act(k)
    at = driver.execute_script("window.counting = false; return window.frames_at")
    return 1000 * (len(at) - 1) / (at[-1] - at[0])


def measure(driver: Any, path: Path) -> dict[str, float]:
    """Return the seconds until the page answers, and frames per second of panning, zooming and hovering."""
    begun = time.perf_counter()
    driver.get(path.as_uri())
    while not driver.execute_script("return document.documentElement.dataset.ready"):
        time.sleep(0.02)
    found = {"load": time.perf_counter() - begun}
    x, y = 450.0, 450.0

    def wander(k: int) -> tuple[float, float]:
        return x + 120 * np.sin(k / 6), y + 80 * np.cos(k / 6)

    send(driver, "mousePressed", *wander(0), button="left", clickCount=1)
    found["pan"] = rate(driver, lambda k: send(driver, "mouseMoved", *wander(k), button="left", buttons=1))
    send(driver, "mouseReleased", *wander(0), button="left", clickCount=1)
    found["zoom"] = rate(
        driver, lambda k: send(driver, "mouseWheel", x, y, deltaX=0, deltaY=40 if k % 20 < 10 else -40)
    )
    found["hover"] = rate(driver, lambda k: send(driver, "mouseMoved", *wander(k)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(f"{platform.machine()}, {platform.processor() or 'processor unknown'}")
    with tempfile.TemporaryDirectory() as folder, browser() as driver:
        print("Chromium", driver.capabilities["browserVersion"])
        print("| points | page | load | pan | zoom | hover |\n| --- | --- | --- | --- | --- | --- |")
        for n in args.points:
            path = Path(folder) / f"{n}.html"
            path.write_text(page(n), "utf-8")
            runs = [measure(driver, path) for _ in range(args.repeats)]
            load = " / ".join(f"{r['load']:.1f}" for r in runs)
            shown = []
            for k in ("pan", "zoom", "hover"):
                rates = sorted(r[k] for r in runs)
                shown.append(f"{statistics.median(rates):.0f} ({rates[0]:.0f} to {rates[-1]:.0f})")
            print(f"| {n:,} | {path.stat().st_size / 1e6:.1f} MB | {load} s | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
