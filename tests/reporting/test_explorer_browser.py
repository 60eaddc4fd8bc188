"""The explorer's page in headless Chromium: it loads from disk alone, and shows, finds, selects and saves what it should."""

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from explored import EVIL, data_of, write_store
from medssl.reporting.explorer import Exploration, Map, columns_of, explorer_page, nearest_scans
from medssl.reporting.faithfulness import Faithfulness, faithfulness
from medssl.reporting.maps import lay_out
from medssl.reporting.thumbnails import thumbnails

WAIT = 120


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser without a network log entry so far; downloads go to `browser.downloads`."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    folder = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,900"):
        options.add_argument(word)
    options.add_argument("--enable-unsafe-swiftshader")  # WebGL without a graphics card
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    made.set_script_timeout(WAIT)
    made.set_page_load_timeout(WAIT)
    made.downloads = folder
    yield made
    made.quit()


def wait_for(browser, script: str, *values):
    """Return what `script` returns, once it is true."""
    end = time.monotonic() + WAIT
    while not (found := browser.execute_script(f"return {script}", *values)):
        assert time.monotonic() < end, f"{script}: {browser.get_log('browser')}"
        time.sleep(0.05)
    return found


def at(browser, i: int) -> tuple[int, int]:
    """Return where point `i` is in the window."""
    x, y = browser.execute_script(
        """const l = plot._fullLayout, b = plot.getBoundingClientRect(), m = maps[state.map], i = arguments[0];
        return [b.left + l.xaxis._offset + l.xaxis.d2p(m.x[i]), b.top + l.yaxis._offset + l.yaxis.d2p(m.y[i])]""",
        i,
    )
    return round(x), round(y)


def mouse(browser, *places: tuple[int, int], press: bool = False, drag: bool = False) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    chain = ActionChains(browser, duration=20)
    pointer = chain.w3c_actions.pointer_action
    for k, place in enumerate(places):
        pointer.move_to_location(*place)
        if drag and k == 0:
            pointer.pointer_down()
    if drag:
        pointer.pointer_up()
    elif press:
        pointer.click()
    chain.perform()


def lonely(xy: np.ndarray) -> int:
    """Return the point farthest from its nearest other point, so that a mouse hits it and no other."""
    far = np.linalg.norm(xy[:, None] - xy[None], axis=2) + 1e9 * np.eye(len(xy))
    return int(far.min(1).argmax())


@pytest.fixture(scope="module", params=[2, 3])
def opened(request, browser, tmp_path_factory):
    """(browser with the page, the page's data, xy of the first map)."""
    folder = tmp_path_factory.mktemp("page")
    store = write_store(folder / "store", dims=request.param)
    x = np.random.default_rng(1).normal(size=(len(store), 5))
    laid = [lay_out(name, x, 0) for name in ("pca", "tsne")]
    maps = [Map(n, xy, f) for n, xy, f in zip(("PCA", "t-SNE"), laid, faithfulness(x, laid), strict=True)]
    patient = store.column("patient").astype(str)
    shown = Exploration(
        "run", store.column("scan"), patient, columns_of(store, store.rows())[0], maps, *nearest_scans(x, patient),
        thumbnails(store, store.rows()), ["A note."],
    )  # fmt: skip
    page = folder / "page.html"
    page.write_text(explorer_page(shown), "utf-8")
    browser.get_log("performance")
    browser.get(page.as_uri())
    wait_for(browser, "document.documentElement.dataset.ready")
    return browser, data_of(page.read_text("utf-8")), laid[0]


def test_it_loads_from_disk_alone_without_errors(opened):
    browser, data, _ = opened
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked), asked
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
    assert browser.execute_script("return typeof alert_was_called") == "undefined"
    legend = browser.execute_script("return [...document.querySelectorAll('#legend .words')].map((e) => e.textContent)")
    assert legend == ["normal", EVIL]
    faith = browser.execute_script("return $('faith').textContent")
    m = data["maps"][0]
    said = [float(e) for e in re.findall(r"\d+\.\d+", faith)]
    assert said[:2] == pytest.approx([m["trustworthiness"], m["continuity"]], abs=0.00051)
    assert said[2] == pytest.approx(100 * m["kept"], abs=0.051)
    assert "A note." in browser.execute_script("return document.body.innerText")


def test_pointing_shows_the_picture_and_a_click_the_neighbours(opened):
    browser, data, xy = opened
    i = lonely(xy)
    x, y = at(browser, i)
    mouse(browser, (x - 3, y), (x, y))
    wait_for(browser, "!$('tip').hidden && $('tip').dataset.row === String(arguments[0])", i)
    wait_for(browser, "$('tip').querySelector('canvas').dataset.drawn")
    drawn = "return [...$('tip').querySelector('canvas').getContext('2d').getImageData(0, 0, 30, 30).data]"
    assert max(v for k, v in enumerate(browser.execute_script(drawn)) if k % 4 < 3) > 40
    assert data["scan"][i] in browser.execute_script("return $('tip').textContent")
    mouse(browser, (x, y), press=True)
    wait_for(browser, "state.chosen === arguments[0]", i)
    rows = "[...document.querySelectorAll('.near button')].map((b) => Number(b.dataset.row))"
    shown = browser.execute_script(f"return {rows}")
    k = data["neighbours"]["others"]["k"]
    assert shown == browser.execute_script(
        "return [...near.others.rows.slice(arguments[0] * arguments[1], (arguments[0] + 1) * arguments[1])]", i, k
    )
    patient = browser.execute_script("return [...patient]")
    assert patient[i] not in [patient[j] for j in shown]
    browser.execute_script("document.getElementById('same').click()")
    assert browser.execute_script(f"return {rows}") == browser.execute_script(
        "return [...near.every.rows.slice(arguments[0] * arguments[1], (arguments[0] + 1) * arguments[1])]", i, k
    )
    browser.execute_script("document.getElementById('same').click(); document.querySelector('.near button').click()")
    assert browser.execute_script("return state.chosen") == shown[0]
    facts = browser.execute_script("return $('one').textContent")
    assert data["scan"][shown[0]] in facts
    assert "age" in facts


def test_a_box_a_lasso_and_a_search_select_and_the_selection_is_saved(opened):
    browser, data, xy = opened
    i = lonely(xy)
    x, y = at(browser, i)
    for key, path in (
        ("b", [(x - 6, y - 6), (x + 6, y + 6)]),
        ("l", [(x - 7, y - 7), (x + 7, y - 7), (x + 7, y + 7), (x - 7, y + 7), (x - 7, y - 6)]),
    ):
        browser.execute_script("keys[arguments[0]]()", key)
        mouse(browser, *path, drag=True)
        wait_for(browser, "state.selected && [...state.selected].join() === String(arguments[0])", i)
        # the others are dimmed once, by the page, and no longer than they are selected
        wait_for(browser, "!plot._fullData[0].selectedpoints && !(plot.layout.selections || []).length")
        assert browser.execute_script("return [...new Set(plot.data[0].marker.opacity)].length") == 2
        browser.execute_script("keys.Escape()")
        assert browser.execute_script("return state.selected") is None
        wait_for(browser, "!plot._fullData[0].selectedpoints && new Set(plot.data[0].marker.opacity).size === 1")
    box = browser.find_element("id", "search")
    box.send_keys("site: north\n")
    chosen = browser.execute_script("return [...state.selected]")
    site = next(c for c in data["columns"] if c["name"] == "site")
    codes = browser.execute_script("return [...columns.find((c) => c.name === 'site').codes]")
    assert chosen == [j for j, code in enumerate(codes) if site["values"][code] == "north"]
    patients = [data["patients"][j] for j in browser.execute_script("return [...patient]")]
    wanted = "scan,patient\n" + "".join(f"{data['scan'][j]},{patients[j]}\n" for j in chosen)
    browser.execute_script("document.getElementById('export').click()")
    saved: Path = browser.downloads / "run-selected.csv"
    end = time.monotonic() + WAIT
    while not saved.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert saved.read_text() == wanted
    saved.unlink()
    browser.execute_script("keys.Escape()")


def test_keys_change_map_colour_and_theme_and_badly_placed_points_are_dimmed(opened):
    browser, data, _ = opened
    body = browser.find_element("css selector", "body")
    browser.execute_script("document.activeElement.blur()")
    body.send_keys("m")
    m = data["maps"][1]
    assert f"{m['trustworthiness']:.3f}" in browser.execute_script("return $('faith').textContent")
    before = browser.execute_script(
        "return [document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]"
    )
    body.send_keys("d")
    after = browser.execute_script(
        "return [document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]"
    )
    assert {before[0], after[0]} == {"light", "dark"}
    assert before[1] != after[1]
    body.send_keys("d")
    body.send_keys("c")
    assert browser.execute_script("return $('colour').selectedOptions[0].textContent") == "score"
    placed = browser.execute_script("return [...maps[1].placed]")
    limit = sorted(placed)[10]
    browser.execute_script("state.dim = arguments[0]; faith(); draw()", limit)
    opacity = browser.execute_script("return plot.data[0].marker.opacity")
    assert [o < 0.2 for o in opacity] == [p < limit for p in placed]
    assert f"{sum(p < limit for p in placed)} points dimmed" in browser.execute_script("return $('faith').textContent")
    browser.execute_script("state.dim = 0; setMap(0); setColour(0)")


def test_fifty_thousand_points_load_and_answer(browser, tmp_path):
    n = 50_000
    rng = np.random.default_rng(0)
    xy = rng.normal(size=(n, 2))
    xy[7] = 8, 8  # alone in a corner
    ids = np.array([f"s{i:05d}" for i in range(n)])
    nearest = nearest_scans(rng.normal(size=(50, 3)), ids[:50])[0]
    rows, distances = (np.tile(a, (n // 50, 1)) for a in (nearest.rows, nearest.distances))
    fake = type(nearest)(rows, distances)
    faithful = Faithfulness(0.9, 0.8, 0.3, np.full(n, 0.9, np.float32), 10)
    columns = {
        "kind": np.array(["a", "b", "c"], object)[rng.integers(0, 3, n)],
        "age": rng.normal(60, 9, n).astype(np.float32),
    }
    page = tmp_path / "many.html"
    page.write_text(
        explorer_page(Exploration("many", ids, ids, columns, [Map("PCA", xy, faithful)], fake, fake)), "utf-8"
    )
    browser.get(page.as_uri())
    wait_for(browser, "document.documentElement.dataset.ready")
    assert browser.execute_script("return [plot.data[0].x.length, $('count').textContent]") == [n, "50,000 scans"]
    place = at(browser, 7)
    mouse(browser, (place[0] - 3, place[1]), place)
    wait_for(browser, "!$('tip').hidden && $('tip').dataset.row === '7'")
    mouse(browser, place, press=True)
    wait_for(browser, "state.chosen === 7")
    browser.execute_script("select(search('kind:b'))")
    assert browser.execute_script("return state.selected.size") == int((columns["kind"] == "b").sum())
    browser.execute_script("setColour(1)")
    assert len(set(browser.execute_script("return plot.data[0].marker.color"))) > 5
