"""``report.html`` in a real browser: headless Chromium opens it from its file, as a person would."""

import re
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from qzhou.evaluation.report import write_report
from qzhou.run.run import Run
from tests.browser import chromium, loaded, show
from tests.conftest import recipe_in
from tests.e2e.commands import run
from tests.finished_run import fill

SECTIONS = ["data", "synthesis", "mining", "training", "results", "diagnosis", "provenance"]
WIDE, NARROW = 1280, 400
WAIT_S = 300
LIGHT, DARK = (255, 255, 255), (18, 23, 30)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    found = Run.open(recipe_in(tmp_path_factory.mktemp("report"))())
    fill(found)
    write_report(found)
    return Path(found.folder.path, "report.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


@pytest.fixture
def opened(browser, address):
    """Opens the page at a width, in a theme."""

    def at(width: int = WIDE, theme: str = "light"):
        show(browser, address, width=width, theme=theme)
        return browser

    return at


def background(page) -> tuple[int, ...]:
    shown = page.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    return tuple(map(int, re.findall(r"\d+", shown)[:3]))


def draw_all(page) -> None:
    """Plots are drawn when they come into sight."""
    drawn = "return Boolean(arguments[0].data)"
    for place in page.find_elements(By.CLASS_NAME, "plot"):
        page.execute_script("arguments[0].scrollIntoView()", place)
        WebDriverWait(page, WAIT_S).until(lambda _, place=place: page.execute_script(drawn, place))


def column(page, table, number: int) -> list[str]:
    cells = "return [...arguments[0].tBodies[0].rows].map(row => row.cells[arguments[1]].textContent)"
    return page.execute_script(cells, table, number)


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_section_and_plot_is_drawn_without_an_error_and_fits(opened, width, theme, tmp_path):
    page = opened(width, theme)
    draw_all(page)

    assert page.get_log("browser") == []
    sections = page.find_elements(By.CSS_SELECTOR, "main > section")
    assert [one.get_attribute("id") for one in sections] == SECTIONS
    assert all(one.is_displayed() and one.size["height"] > 100 for one in sections)
    plots = page.find_elements(By.CLASS_NAME, "plot")
    assert len(plots) > 15
    assert all(one.find_elements(By.CLASS_NAME, "main-svg") for one in plots)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    assert page.save_screenshot(str(tmp_path / "page.png"))


def test_nothing_but_the_file_is_asked_for(opened):
    page = opened()
    draw_all(page)

    sent = loaded(page)
    assert sent
    assert all(address.startswith(("file:", "data:", "blob:")) for address in sent), sent


def test_a_click_on_a_heading_sorts_and_another_turns_the_order(opened):
    page = opened()
    table = page.find_element(By.CSS_SELECTOR, "#results table")
    number = [one.text.split("\n")[0].strip(" ↕\xa0") for one in table.find_elements(By.TAG_NAME, "th")].index(
        "bm25"
    )
    heading = table.find_elements(By.TAG_NAME, "th")[number]
    button = heading.find_element(By.TAG_NAME, "button")

    page.execute_script("arguments[0].click()", button)
    assert column(page, table, number) == ["0.5500", "0.4100", "–", "–"]
    assert heading.get_attribute("aria-sort") == "descending"

    button.send_keys(Keys.ENTER)
    assert column(page, table, number) == ["0.4100", "0.5500", "–", "–"], "what is missing stays last"
    assert heading.get_attribute("aria-sort") == "ascending"


def test_numbers_sort_by_value_and_not_by_their_digits(opened):
    page = opened()
    table = page.find_element(By.CSS_SELECTOR, "#results table")
    page.execute_script("arguments[0].querySelectorAll('th button')[3].click()", table)

    assert column(page, table, 3) == ["1,204", "1,000", "498", "300"]


@pytest.mark.parametrize(("theme", "before", "after"), [("light", LIGHT, DARK), ("dark", DARK, LIGHT)])
def test_the_page_follows_the_system_until_its_button_says_otherwise(opened, theme, before, after):
    page = opened(theme=theme)
    draw_all(page)
    assert background(page) == before

    page.execute_script("document.getElementById('theme').click()")

    assert background(page) == after
    ink = page.execute_script("return getComputedStyle(document.body).color")
    plots = page.execute_script("return [...document.querySelectorAll('.plot')].map(one => one.layout.font.color)")
    assert set(plots) == {ink}
    assert page.get_log("browser") == []


def test_a_name_in_the_legend_hides_its_line(opened):
    page = opened()
    draw_all(page)
    key = page.find_element(By.CSS_SELECTOR, "#training .keys button")

    page.execute_script("arguments[0].click()", key)

    assert key.get_attribute("aria-pressed") == "false"
    assert page.execute_script("return document.querySelector('#training .plot').data[0].visible") is False


def test_the_page_can_be_written_again_and_its_place_is_said(tmp_path):
    recipe = tmp_path / "recipe.toml"
    stage = "steps = 1\nlearning_rate = 1e-4\nbatch_size = 4\n"
    recipe.write_text(
        f'[run]\nname = "again"\nstorage = "{tmp_path}"\n[model]\nbackbone = "unused"\n'
        '[[datasets]]\nname = "docs"\nreader = "jsonl"\nrule = "title_body"\npaths = ["unused"]\n'
        f"[training.stage1]\n{stage}[training.stage2]\n{stage}",
        "utf-8",
    )
    never = run("jobs/report.py", recipe)
    assert (never.status, "there is no run of that name" in never.err) == (2, True), never.text
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "recipe.json").write_text("{}", "utf-8")

    done = run("jobs/report.py", recipe)

    assert done.out == f"report:  {tmp_path}/again/report.html\n", done.text
    assert (tmp_path / "again" / "report.html").exists()
