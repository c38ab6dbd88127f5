"""The page of the endpoint, in a browser: rankings side by side, marked words, labels that are kept and saved."""

import json

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.browser import chromium, show
from tests.playground_server import TEXTS, playground


@pytest.fixture(scope="module")
def page():
    with playground() as address, chromium() as driver:
        driver.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "deny"})
        show(driver, address, width=1000, theme="light")
        waiting(driver).until(lambda _: driver.find_element(By.ID, "searching").is_displayed())
        yield driver


def waiting(driver):
    return WebDriverWait(driver, 60)


def search(page, query, by):
    field = page.find_element(By.ID, "question")
    field.clear()
    field.send_keys(query)
    Select(page.find_element(By.ID, "by")).select_by_value(by)
    page.find_element(By.ID, "search").click()
    waiting(page).until(lambda _: page.find_element(By.ID, "search").is_enabled())


def texts(page, name):
    found = page.find_elements(By.CSS_SELECTOR, f"#{name} .text")
    return [one.text for one in found]


def stored(page):
    return json.loads(page.execute_script("return localStorage.getItem('labels') || '[]'"))


@pytest.mark.parametrize(
    ("by", "order", "words"), [("vectors", [0, 2, 1], []), ("both", [0, 2], []), ("side", [0, 2, 1], [2, 0])]
)
def test_what_is_found(page, by, order, words):
    search(page, "reset kettle", by)
    shown = [TEXTS[n].replace("\n\n", "\n") for n in order]
    assert texts(page, "found") == shown
    assert texts(page, "by-words") == [TEXTS[n].replace("\n\n", "\n") for n in words]
    assert [one.text for one in page.find_elements(By.CSS_SELECTOR, "#found li:first-of-type mark")] == [
        "Kettle",
        "Reset",
    ]


def test_labels_are_kept_changed_and_saved(page):
    page.execute_script("localStorage.clear()")
    search(page, "reset it", "side")
    boxes = {one.get_attribute("value"): one for one in page.find_elements(By.CSS_SELECTOR, "#found input")}
    boxes["d0"].click()
    both = page.find_elements(By.CSS_SELECTOR, "#searching input[value=d0]")
    assert [one.is_selected() for one in both] == [True, True]  # in both rankings
    page.find_element(By.ID, "keep").click()

    assert {(one["query"], one["id"], one["grade"]) for one in stored(page)} == {
        ("reset it", "d0", 1), ("reset it", "d1", 0), ("reset it", "d2", 0),
    }  # fmt: skip
    search(page, "another", "words")
    page.find_element(By.ID, "keep").click()
    assert page.find_element(By.ID, "kept").text == "5"
    search(page, "reset it", "words")
    page.find_elements(By.CSS_SELECTOR, "#found input[value=d2]")[0].click()
    page.find_element(By.ID, "keep").click()
    grades = {one["id"]: one["grade"] for one in stored(page) if one["query"] == "reset it"}
    assert grades == {"d0": 0, "d1": 0, "d2": 1}  # what is shown is labelled anew, and the rest stays
    page.find_element(By.ID, "save").click()
    assert [line["level"] for line in page.get_log("browser") if line["level"] == "SEVERE"] == []
