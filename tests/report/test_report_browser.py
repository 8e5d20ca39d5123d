"""The HTML report in Chromium, from a file, at two widths; skipped where the browser or its driver is not installed."""

import json
import shutil
from pathlib import Path

import pytest
from report_factory import record
from report_page import HOSTILE, edited, experiments, folder, hostile, measured

from cmbench import records
from cmbench.experiments.manifest import read_all
from cmbench.records import Metric
from cmbench.report.page import write_page

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no Chromium here: apt-get install chromium chromium-driver"
    ),
]
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    made = [*measured(), *hostile()]
    folder(out, made)
    experiments(out, made, HOSTILE)
    path = out / "report.html"
    text = write_page(records.read(out), read_all(out), out, f"Report {HOSTILE}", [edited(HOSTILE)])
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=WIDTHS)
def browser(request, tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    width, height = WIDTHS[request.param]
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": request.param == "phone"}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page):
    """The page, just opened, and logs that begin with it."""
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page.as_uri())
    return browser


def press(driver, selector, *keys):
    """Focus an element as Tab would, and press keys."""
    element = driver.find_element("css selector", selector)
    driver.execute_script("arguments[0].focus()", element)
    assert driver.switch_to.active_element == element
    for key in keys:
        driver.switch_to.active_element.send_keys(key)


def drawn(driver, chart="cmbench.cost"):
    """What a chart shows: for each series its points, as name, x and y."""
    sets = f"{chart}.chart.data.datasets.filter((one) => !one.front)"
    return driver.execute_script(f"return {sets}.map((one) => one.data.map((p) => [p.name, p.x, p.y]))")


def test_it_opens_without_an_error_a_request_or_an_overflow(opened):
    log = [entry for entry in opened.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert not log
    sent = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"]
    assert urls and not [url for url in urls if not url.startswith(("file:", "data:"))]
    assert opened.execute_script("return window.hacked") is None
    wide, room = opened.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= room


def test_nothing_reaches_out_of_the_page_with_everything_open(opened):
    opened.execute_script(
        "for (const b of document.querySelectorAll('button.open')) b.click();"
        "for (const d of document.querySelectorAll('details')) d.open = true;"
    )
    wide, room = opened.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= room


def test_tab_reaches_every_control_once_and_in_order(opened):
    from selenium.webdriver.common.keys import Keys

    controls = opened.execute_script(
        "const all = 'a[href], button, input, select, summary, [tabindex=\"0\"]';"
        "const there = (e) => !e.disabled && e.checkVisibility({visibilityProperty: true});"
        "return [...document.querySelectorAll(all)].filter(there)"
    )
    assert len(controls) > 50
    opened.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    visited = []
    body = opened.find_element("css selector", "body")
    body.send_keys(Keys.TAB)
    for _ in range(len(controls) + 5):
        element = opened.switch_to.active_element
        if element == body or element in visited:
            break
        outline = opened.execute_script("return getComputedStyle(arguments[0]).outlineStyle", element)
        assert outline != "none", element.get_attribute("outerHTML")[:80]
        visited.append(element)
        element.send_keys(Keys.TAB)
    missed = [one.get_attribute("outerHTML")[:80] for one in controls if one not in visited]
    assert not missed
    assert visited == controls


def test_metric_and_cost_change_what_the_chart_shows(opened):
    from selenium.webdriver.common.keys import Keys

    before = drawn(opened)
    shown = {point[0] for series in before for point in series}
    assert {"CD", "PD", "DDIM", HOSTILE} == shown
    press(opened, "#cost-metric", Keys.ARROW_DOWN)
    qualities = drawn(opened)
    cd = next(series for series in qualities if series[0][0] == "CD")
    assert [point[2] for point in cd] == [pytest.approx(9 - base - 0.1) for base in (0.6, 0.4)]
    press(opened, "#cost-x", Keys.ARROW_DOWN)
    cd = next(series for series in drawn(opened) if series[0][0] == "CD")
    assert [point[1] for point in cd] == [pytest.approx(nfe / 2500) for nfe in (1, 2)]
    assert "seconds an image" in opened.find_element("css selector", "#cost canvas").get_attribute(
        "aria-label"
    )
    press(opened, "#cost-x", Keys.ARROW_DOWN)
    cd = next(series for series in drawn(opened) if series[0][0] == "CD")
    assert [point[1] for point in cd] == [100, 200]


def test_the_boxes_of_methods_and_groups_filter_the_chart(opened):
    from selenium.webdriver.common.keys import Keys

    opened.execute_script("document.getElementById('cost-legend').open = true")
    press(opened, ".legend-groups fieldset:nth-of-type(2) legend input", Keys.SPACE)
    assert {point[0] for series in drawn(opened) for point in series} == {"DDIM", HOSTILE}
    press(opened, ".legend-groups fieldset:nth-of-type(2) div input", Keys.SPACE)
    assert len({point[0] for series in drawn(opened) for point in series}) == 3


def test_another_data_set_brings_its_own_metrics_and_published_figures(opened):
    from selenium.webdriver.support.ui import Select

    Select(opened.find_element("css selector", "#cost-controls select")).select_by_value("cifar10")
    names = {point[0] for series in drawn(opened) for point in series}
    assert "EDM" in names and "CD (published)" in names and "CD" not in names
    opened.execute_script("document.querySelector('.legend-groups legend input').click()")
    names = {point[0] for series in drawn(opened) for point in series}
    assert "EDM" not in names and "BigGAN (published)" not in names and "CD (published)" in names


def test_arrow_keys_walk_along_the_points_and_enter_opens_the_row(opened):
    from selenium.webdriver.common.keys import Keys

    readout = opened.find_element("css selector", "#cost .readout")
    press(opened, "#cost canvas", Keys.ARROW_RIGHT)
    first = readout.text
    assert "CD" in first and "0.610" in first and "0123456789ab" in first and "seeds 0, 1, 2" in first
    press(opened, "#cost canvas", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert readout.text != first
    press(opened, "#cost canvas", Keys.HOME, Keys.ENTER)
    focused = opened.switch_to.active_element
    assert focused.get_attribute("aria-expanded") == "true" and focused.text == "CD"


def test_the_data_of_the_chart_stand_in_a_table(opened):
    from selenium.webdriver.common.keys import Keys

    points = sum(len(series) for series in drawn(opened))
    press(opened, "#cost-plot summary", Keys.ENTER)
    rows = opened.find_elements("css selector", "#cost-plot table tbody tr")
    assert len(rows) == points and "0.610 ± 0.010" in rows[0].text


def test_curves_of_experiments_are_drawn_and_can_be_left_out(opened):
    from selenium.webdriver.common.keys import Keys

    assert [len(series) for series in drawn(opened, "cmbench.experiments[0]")] == [3, 3]
    assert [point[1] for point in drawn(opened, "cmbench.experiments[0]")[0]] == [100, 200, 300]
    press(opened, "#experiment-0 fieldset input", Keys.SPACE)
    assert len(drawn(opened, "cmbench.experiments[0]")) == 1


def test_curves_of_editing_follow_task_metric_and_boxes(opened):
    from selenium.webdriver.common.keys import Keys

    chart = "cmbench.editing[0]"
    assert [[point[1:] for point in series] for series in drawn(opened, chart)] == [
        [[1, 11.5], [5, 15.5]],
        [[1, 13.5], [5, 17.5]],
    ]
    dropped = opened.find_element("css selector", "#editing-0 .dropped")
    assert dropped.text == "Dashed, without a network: mean of the data, 9."
    press(opened, "#editing-0 label:nth-of-type(2) select", Keys.ARROW_DOWN)
    assert [point[2] for point in drawn(opened, chart)[0]] == [10, 2]
    assert dropped.text.endswith("mean of the data, 40. The originals have 0.1.")
    press(opened, "#editing-0 label:nth-of-type(1) select", Keys.ARROW_DOWN)
    press(opened, "#editing-0 fieldset input", Keys.SPACE)
    assert len(drawn(opened, chart)) == 1
    press(opened, "#editing-0 canvas", Keys.ARROW_RIGHT)
    readout = opened.find_element("css selector", "#editing-0 .readout").text
    assert "DDIM" in readout and "as denoise is set" in readout and "seeds 0, 1" in readout
    assert "abcdef012345" in readout


def test_the_slider_changes_the_samples_and_keeps_their_places(opened):
    from selenium.webdriver.common.keys import Keys

    def shown():
        return {one.get_attribute("alt") for one in opened.find_elements("css selector", "#samples-grid img")}

    assert shown() == {f"Samples 0 to 15 of {name}, NFE 1, seed 0" for name in ("CD", "PD")}
    sources = [one.get_attribute("src") for one in opened.find_elements("css selector", "#samples-grid img")]
    press(opened, "#samples-nfe", Keys.ARROW_RIGHT)
    assert shown() == {f"Samples 0 to 15 of {name}, NFE 2, seed 0" for name in ("CD", "PD")}
    assert sources != [
        one.get_attribute("src") for one in opened.find_elements("css selector", "#samples-grid img")
    ]
    assert opened.find_element("id", "samples-nfe").get_attribute("aria-valuetext") == "up to 2 evaluations"
    press(opened, "#samples-nfe", Keys.END)
    assert len(shown()) == 4 and "Samples 0 to 15 of DDIM, NFE 20, seed 0" in shown()
    press(opened, "#samples-mode", Keys.ARROW_DOWN)
    assert shown() == {"Samples 0 to 15 of DDIM, NFE 20, seed 0"}


def test_a_row_opens_and_closes_by_keyboard(opened):
    from selenium.webdriver.common.keys import Keys

    button = opened.find_element("css selector", "button.open")
    more = opened.find_element("id", button.get_attribute("aria-controls"))
    assert not more.is_displayed()
    press(opened, "button.open", Keys.ENTER)
    assert more.is_displayed() and button.get_attribute("aria-expanded") == "true"
    box = opened.execute_script(
        "const b = arguments[0].querySelector('.sheet').getBoundingClientRect(); return [b.left, b.right]",
        more,
    )
    assert box[0] >= 0 and box[1] <= opened.execute_script("return innerWidth")
    press(opened, "button.open", Keys.SPACE)
    assert not more.is_displayed()


def test_the_search_leaves_the_rows_that_it_finds(opened):
    press(opened, "input.find[data-table='rows-1']", *"ddim")
    rows = opened.find_elements("css selector", "#rows-1 .row")
    assert [row.text.split()[0] for row in rows if row.is_displayed()] == ["DDIM", "DDIM"]
    assert opened.find_elements("css selector", ".found")[1].text == "2 rows"


def test_an_empty_chart_is_no_error(opened):
    opened.execute_script(
        "for (const box of document.querySelectorAll('.legend-groups legend input')) box.click()"
    )
    assert drawn(opened) == []
    assert not [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.parametrize("what", ["no figure", "no record"])
def test_a_page_of_little_is_no_error(opened, tmp_path, what):
    made = [record("cd", metrics={"fid": Metric.missing("no weights")})] if what == "no figure" else []
    experiments(tmp_path, [])
    manifests = [] if made else read_all(tmp_path)
    path = tmp_path / "little.html"
    path.write_text(write_page(made, manifests, tmp_path, "Little"), encoding="utf-8")
    opened.get(path.as_uri())
    assert opened.find_element("css selector", "h1").text == "Little"
    assert not [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"]
    if made:
        assert "not computed: no weights" in opened.find_element("css selector", ".footnotes").text
        assert "1 of 1 rows have no figure" in opened.find_element("css selector", "#cost .dropped").text
    else:
        assert len(drawn(opened, "cmbench.experiments[0]")) == 2


def test_the_page_is_dark_where_the_reader_wants_it(opened):
    def background(scheme):
        wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
        return opened.execute_script("return getComputedStyle(document.body).backgroundColor")

    assert background("dark") == "rgb(20, 23, 26)"
    assert background("light") == "rgb(255, 255, 255)"


def test_without_scripts_the_provenance_is_open(page):
    text = Path(page).read_text(encoding="utf-8")
    assert ".js .more:not(.opened)" in text and '<tr class="more" id=' in text
