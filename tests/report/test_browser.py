"""The report in a real browser: it sorts, filters, opens records, loads nothing, and can be used without a mouse."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise

import pytest

from tests.support.small_world import ROOT, made_record
from unlearnbench.records.schema import label, read_record, write_record
from unlearnbench.report.page import build_page

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium here: apt-get install chromium chromium-driver"
)
webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium here: pip install 'unlearnbench[test]'")
METHODS = (
    "original",
    "retrain",
    "destroy",
    "prompt_filter",
    "esd",
    "concept_ablation",
    "salun",
    "finetune",
    "salun@tuned",
)
WORLD = "digits-class/default/3"
BAD = "<script>window.ran = true</script>"
"""Name and data access of a method that has no score."""
COLOURS = """
const context = document.createElement("canvas").getContext("2d");
const rgb = (colour) => {
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const style = (selector) => getComputedStyle(document.querySelector(selector));
const texts = ["body", ".legend", "a", ".spread", ".concept.gone", "figure svg"];
return [rgb(style("body").backgroundColor), ...texts.map((selector) => rgb(style(selector).color))];
"""
ODD = {"lr": BAD}
LABEL = label("odd", "default", ODD)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a few shipped records, one of them made an attack on its reader."""
    folder = tmp_path_factory.mktemp("report")
    for name in METHODS:
        shutil.copytree(ROOT / "results" / WORLD / name.partition("@")[0], folder / "results" / WORLD / name)
        if "@tuned" in name:
            tune(folder / "results" / WORLD / name)
        first = read_record(folder / "results" / WORLD / name / "seed-0.json")
        for path in sorted((folder / "results" / WORLD / name).glob("seed-[12].json")):  # as if of one version
            write_record(read_record(path).model_copy(update={"engine_hash": first.engine_hash}), path)
    protocol = json.loads((folder / "results" / WORLD / "esd/seed-0.json").read_text())["protocol"]
    bad = made_record(
        "odd", 0, protocol_changes=protocol, method_changes={"requires": (BAD,), "overrides": ODD}, reason=BAD
    )
    write_record(bad, bad.path(folder / "results"))
    (folder / "report.html").write_text(build_page(folder / "results").html)
    return folder / "report.html"


def tune(folder):
    """Make the runs in a folder those of tuned settings, with images of their own."""
    for path in folder.glob("seed-*.json"):
        record = read_record(path)
        method = record.method.model_copy(update={"division": "tuned", "preset": "tuned"})
        write_record(record.model_copy(update={"method": method, "images": None, "attacks": {}}), path)
        path.with_suffix(".parquet").unlink()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1400,1000",
    ):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A report of two concepts."""
    folder = tmp_path_factory.mktemp("pair")
    for forget in ("3", "8"):
        record = made_record("esd", 0, {"ua": 0.5, "ra": 0.5}, forget=forget)
        write_record(record, record.path(folder / "results"))
    (folder / "report.html").write_text(build_page(folder / "results").html)
    return folder / "report.html"


@pytest.fixture
def loaded(chromium, page):
    """The page as it is when it was just loaded, on a desk, in light colours."""
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    chromium.get("about:blank")
    chromium.get_log("performance")
    chromium.get_log("browser")
    chromium.get(page.as_uri())
    return chromium


@pytest.fixture
def browser(loaded):
    """The page with its folded parts open."""
    loaded.execute_script("for (const part of document.querySelectorAll('details.fold')) part.open = true")
    return loaded


def one(browser, selector):
    return browser.find_element("css selector", selector)


def each(browser, selector):
    return browser.find_elements("css selector", selector)


def shown_methods(browser):
    rows = each(browser, ".board tbody.methods tr.row")
    return [row.find_element("css selector", "th a").text for row in rows if row.is_displayed()]


def head_named(browser, title):
    heads = {head: head.text.replace("\n", " ") for head in each(browser, ".board thead th")}
    (found,) = [head for head, text in heads.items() if f"{text} ".startswith(f"{title} ")]
    return found


def column_of(browser, title):
    """A column's numbers from top to bottom, controls apart."""
    place = each(browser, ".board thead th").index(head_named(browser, title))
    rows = [row for row in each(browser, ".board tbody.methods tr.row") if row.is_displayed()]
    cells = [row.find_elements("xpath", "./*")[place] for row in rows]
    return [float(value) if (value := cell.get_attribute("data-v")) else None for cell in cells]


def group_of(browser, method):
    """A method's records."""
    (found,) = [group for group in each(browser, "details.method") if group.text.startswith(f"{method} ")]
    return found


def show(browser, width, height):
    """Make the window this large."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def short_board(browser):
    """The methods of the short board that can be seen."""
    rows = each(browser, ".short tbody.methods tr.row")
    return [row.find_element("css selector", "th a").text for row in rows if row.is_displayed()]


def press(browser, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def box(browser, name):
    (found,) = [label for label in each(browser, ".tools label") if label.text == name]
    return found


def test_it_loads_without_a_complaint_and_asks_nothing_of_the_network(browser, page):
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    entries = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [url for url in entries if not url.startswith("data:")] == []


def test_a_script_in_a_record_is_read_and_not_run(browser):
    assert LABEL in shown_methods(browser)
    assert BAD in [cell.text for cell in each(browser, ".access")]
    assert browser.execute_script("return window.ran") is None


def test_the_policy_stops_scripts_that_are_not_ours(browser):
    browser.execute_script(
        "const s = document.createElement('script'); s.text = 'window.ran = 1'; document.body.append(s)"
    )
    assert browser.execute_script("return window.ran") is None
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (375, 812)])
def test_the_first_screen_has_the_board_and_a_picture(loaded, width, height):
    show(loaded, width, height)
    for selector in ("h1", ".choice", "h2", ".settings", ".short thead", ".short tbody.methods tr:first-child"):
        rect = one(loaded, selector).rect
        assert 0 <= rect["y"] < rect["y"] + rect["height"] <= height, selector
    board, picture = one(loaded, ".box").rect, one(loaded, ".hero figure svg").rect
    beside = picture["x"] >= board["x"] + board["width"]
    assert beside == (width == 1280)
    assert beside or picture["y"] >= board["y"] + board["height"]
    assert min(height, picture["y"] + picture["height"]) - picture["y"] > 0.8 * picture["height"]
    root = "document.documentElement"
    assert loaded.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")


def test_the_short_board_has_the_best_score_first_and_controls_last(loaded):
    scores = [row.get_attribute("data-v") for row in each(loaded, ".short tbody.methods tr.row td:nth-child(2)")]
    known = [float(score) for score in scores if score]
    assert known == sorted(known, reverse=True) and scores[len(known) :] == [None] * (len(scores) - len(known))
    assert [body.get_attribute("class") for body in each(loaded, ".short tbody")] == ["methods", "controls"]


@pytest.mark.parametrize("scripts", [True, False])
def test_other_settings_come_by_a_toggle_in_all_tables_and_pictures(loaded, page, scripts):
    loaded.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
    try:
        loaded.get(page.as_uri())
        strips = ".strip.apart, figure.apart, .short .apart"
        assert "salun" in short_board(loaded) and "salun@tuned" not in short_board(loaded)
        assert each(loaded, strips) and not any(part.is_displayed() for part in each(loaded, strips))
        one(loaded, ".settings input").click()
        assert {"salun", "salun@tuned"} <= set(short_board(loaded))
        assert any(part.is_displayed() for part in each(loaded, ".strip.apart"))
    finally:
        loaded.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_table_of_attacks_is_sorted_by_keyboard(loaded):
    from selenium.webdriver.common.keys import Keys

    heads = each(loaded, ".attacks thead th")
    place = next(i for i, head in enumerate(heads) if head.text.replace("\n", " ").startswith("worst attack"))
    button = heads[place].find_element("css selector", "button")
    assert button.get_attribute("title"), "it says what the column means"
    loaded.execute_script("arguments[0].focus()", button)
    for order, sign in (("ascending", 1), ("descending", -1)):
        press(loaded, Keys.ENTER)
        assert heads[place].get_attribute("aria-sort") == order
        assert len(each(loaded, ".attacks [aria-sort]")) == 1
        for body in each(loaded, ".attacks tbody"):
            rows = [row for row in body.find_elements("css selector", "tr.row") if row.is_displayed()]
            texts = [row.find_elements("xpath", "./*")[place].text for row in rows]
            values = [sign * float(re.search(r"-?[\d.]+", each)[0]) for each in texts if each != "—"]
            assert values == sorted(values)
    press(loaded, Keys.TAB, Keys.ENTER)
    assert heads[place + 1].get_attribute("aria-sort") and not heads[place].get_attribute("aria-sort")


def test_one_concept_is_shown_at_a_time_and_chosen_by_a_link(chromium, loaded, pair):
    show(loaded, 1280, 300)
    loaded.get(pair.as_uri())
    assert [head.is_displayed() for head in each(loaded, ".sheet h2")] == [True, False]
    second = each(loaded, ".choice")[1]
    second.click()
    loaded.execute_async_script("setTimeout(arguments[0], 50)")
    assert [head.is_displayed() for head in each(loaded, ".sheet h2")] == [False, True]
    assert [link.get_attribute("aria-current") for link in each(loaded, ".choice")] == [None, "true"]
    assert loaded.execute_script("return scrollY") == 0, "the choice stays in view"
    loaded.get("about:blank")
    loaded.get(f"{pair.as_uri()}#t2")
    assert [head.is_displayed() for head in each(loaded, ".sheet h2")] == [False, True]
    assert loaded.execute_script("return scrollY") == 0
    show(loaded, 200, 700)
    loaded.get("about:blank")
    loaded.get(f"{pair.as_uri()}#t2")
    bounds = loaded.execute_script("return document.querySelectorAll('.choice')[1].getBoundingClientRect().toJSON()")
    assert bounds["left"] >= 0 and bounds["right"] <= 200, "on a narrow screen what was chosen is in view"
    loaded.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        loaded.get(pair.as_uri())
        assert all(head.is_displayed() for head in each(loaded, ".sheet h2"))
    finally:
        loaded.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_meaning_of_columns_is_a_link_away(loaded):
    meanings = one(loaded, ".meanings")
    assert not meanings.is_displayed()
    one(loaded, ".key a").click()
    loaded.execute_async_script("setTimeout(arguments[0], 50)")
    assert meanings.is_displayed() and "forget images" in meanings.text
    heads = each(loaded, ".short thead button")
    assert heads and all(head.get_attribute("title") for head in heads)


def test_it_sorts_by_a_number_both_ways_and_leaves_controls_above(browser):
    head = head_named(browser, "UA (%)")
    for order, sign in (("descending", -1), ("ascending", 1)):
        head.find_element("css selector", "button").click()
        values = column_of(browser, "UA (%)")
        assert head.get_attribute("aria-sort") == order
        assert values[-1] is None and len(values) == 5
        assert [sign * value for value in values[:-1]] == sorted(sign * value for value in values[:-1])
        assert f"sorted by UA (%) ↑, {order}" in one(browser, "#said").get_attribute("textContent")
    assert len(each(browser, ".board [aria-sort]")) == 1
    assert one(browser, ".board tbody").get_attribute("class") == "controls"


def test_it_sorts_by_words_and_by_what_is_better_when_lower_first(browser):
    head_named(browser, "method").find_element("css selector", "button").click()
    assert shown_methods(browser) == ["concept_ablation", "esd", "finetune", LABEL, "salun"]
    head_named(browser, "FID").find_element("css selector", "button").click()
    values = column_of(browser, "FID")
    assert values[:-1] == sorted(values[:-1]) and values[-1] is None


def test_a_head_is_reached_and_used_by_keyboard(browser):
    from selenium.webdriver.common.keys import Keys

    one(browser, ".board thead th:first-child button").click()
    press(browser, Keys.TAB, Keys.TAB, Keys.ENTER)
    assert head_named(browser, "n").get_attribute("aria-sort") == "descending"
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_it_filters_by_words_and_by_controls(browser):
    field = one(browser, ".tools input[type=search]")
    field.send_keys("retain sal")
    assert shown_methods(browser) == ["salun"], "words of the method and of its data"
    assert one(browser, ".count").text == "1 of 9 methods shown"
    field.clear()
    box(browser, "controls").click()
    assert len(shown_methods(browser)) == 5
    assert not one(browser, ".board tbody.controls").is_displayed()
    assert one(browser, ".count").text == "5 of 9 methods shown"


def test_intervals_and_further_columns_come_on_demand(browser):
    interval = one(browser, ".board .interval")
    assert not interval.is_displayed()
    box(browser, "intervals").click()
    assert interval.is_displayed() and re.fullmatch(r"\[.+, .+\]", interval.text)
    before = len([head for head in each(browser, ".board thead th") if head.is_displayed()])
    for axis in ("efficacy", "utility", "cost"):
        box(browser, f"all {axis}").click()
    heads = [head.text for head in each(browser, ".board thead th") if head.is_displayed()]
    assert len(heads) > before and {"p_forget ↓", "KID ↓"} <= set(heads)


def test_a_link_opens_the_records_of_its_row(loaded):
    (link,) = [link for link in each(loaded, ".short tbody a") if link.text == "esd"]
    group = one(loaded, link.get_dom_attribute("href"))
    assert not group.is_displayed() and not group.get_attribute("open")
    link.click()
    loaded.execute_async_script("setTimeout(arguments[0], 50)")
    assert group.is_displayed() and group.get_attribute("open")
    assert loaded.switch_to.active_element.text.startswith("esd")


def test_a_record_is_opened_and_its_command_copied_by_keyboard(browser):
    from selenium.webdriver.common.keys import Keys

    group = group_of(browser, "esd")
    group.find_element("css selector", "summary").send_keys(Keys.ENTER)
    press(browser, Keys.TAB, Keys.ENTER)
    record = group.find_element("css selector", "details.record")
    assert record.get_attribute("open")
    assert "unlearnbench run --task digits-class --forget 3 --method esd --seeds 0" in record.text
    press(browser, Keys.TAB, Keys.TAB, Keys.ENTER)
    browser.execute_async_script("setTimeout(arguments[0], 100)")
    assert record.find_element("css selector", "button.copy").text in ("copied", "selected")


def test_an_address_with_a_record_opens_it(browser, page):
    record = group_of(browser, "esd").find_elements("css selector", "details.record")[1]
    address = f"{page.as_uri()}#{record.get_attribute('id')}"
    browser.get("about:blank")
    browser.get(address)
    assert not one(browser, ".all-columns").get_attribute("open"), "nothing else is opened"
    record = group_of(browser, "esd").find_elements("css selector", "details.record")[1]
    assert record.is_displayed() and record.get_attribute("open")


def test_on_a_phone_only_wide_things_scroll_and_in_boxes_of_their_own(browser):
    show(browser, 375, 812)
    for axis in each(browser, ".tools label.axis"):
        axis.click()
    mark = '<span class="sr"> (best)</span>'  # hidden words beside numbers; no shipped method has the five seeds for it
    browser.execute_script(
        "for (const cell of document.querySelectorAll('.board td')) cell.insertAdjacentHTML('beforeend', arguments[0])",
        mark,
    )
    for group in each(browser, "details"):
        browser.execute_script("arguments[0].open = true", group)
    assert browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [375, 375]
    table = one(browser, ".board").find_element("xpath", "..")
    assert browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", table)
    browser.execute_script("arguments[0].scrollLeft = 200", table)
    assert one(browser, ".board tbody.methods tr.row th").rect["x"] < 20, "the first column stays"


def test_the_picture_marks_the_row_that_is_pointed_at(loaded):
    from selenium.webdriver import ActionChains

    ActionChains(loaded).move_to_element(one(loaded, ".short tr.row:nth-of-type(2) td")).perform()
    point = one(loaded, ".short tr.row:nth-of-type(2)").get_attribute("data-point")
    assert [mark.get_attribute("id") for mark in each(loaded, ".pointed")] == [point]


def test_dark_surroundings_give_a_dark_page_that_can_be_read(browser):
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        paper, *inks = map(luminance, browser.execute_script(COLOURS))
        assert (paper < 0.05) == (scheme == "dark")
        assert min(contrast(paper, ink) for ink in inks) >= 4.5, scheme


def luminance(rgb):
    """Relative luminance of sRGB (WCAG 2.1)."""
    parts = [value / 255 for value in rgb]
    parts = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def contrast(a, b):
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def test_everything_has_a_name_and_headings_are_in_order(browser):
    for axis in ("efficacy", "utility", "cost"):
        box(browser, f"all {axis}").click()
    group_of(browser, "esd").find_element("css selector", "summary").click()
    for selector in ("button", "input", "a", "[role=region]", "nav", "img", "svg[role=img]"):
        found = [element for element in each(browser, selector) if element.is_displayed()]
        assert found, selector
        assert [element.get_attribute("outerHTML") for element in found if not element.accessible_name.strip()] == []
    levels = [int(head.tag_name[1]) for head in each(browser, "h1, h2, h3, h4, h5, h6")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(each(browser, "main")) == len(each(browser, "body > header")) == len(each(browser, "nav")) == 1
    assert one(browser, "html").get_attribute("lang") == "en"
    assert [table for table in each(browser, "table") if not table.find_elements("css selector", "caption")] == []


def test_the_skip_link_comes_first(browser):
    from selenium.webdriver.common.keys import Keys

    press(browser, Keys.TAB)
    link = browser.switch_to.active_element
    assert link.text == "Skip to the tables" and link.rect["x"] >= 0
    press(browser, Keys.ENTER, Keys.TAB)
    inside = browser.execute_script("return document.querySelector('main').contains(document.activeElement)")
    assert inside


def test_without_scripts_everything_is_there_to_be_read(browser, page):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page.as_uri())
        for part in ("all-columns", "records-of"):
            one(browser, f".{part} > summary").click()
        assert one(browser, ".board .interval").is_displayed()
        assert all(head.is_displayed() for head in each(browser, ".board thead th"))
        assert not one(browser, ".tools").is_displayed()
        one(browser, "details.method summary").click()
        assert one(browser, "details.method details summary").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
