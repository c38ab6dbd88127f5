"""`make docs`, without its virtual environment: the site builds without a warning, and a broken link is one."""

import shutil
from pathlib import Path

import pytest

from qzhou.config.recipe import Recipe
from tests.browser import chromium, loaded, show
from tests.e2e.commands import ROOT, Finished, run

DOCS = ROOT / "docs"


def build(source: Path, into: Path) -> Finished:
    """What the Makefile does; the configuration is always the project's."""
    return run("-m", "sphinx", "-q", "-E", "-W", "--keep-going", "-c", DOCS, source, into)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    into = tmp_path_factory.mktemp("site")
    done = build(DOCS, into)
    assert done.status == 0, done.text
    return into


def test_the_site_has_every_page_and_a_way_to_each(site):
    index = (site / "index.html").read_text("utf-8")

    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or f'href="{page.stem}.html"' in index, page.name


def test_the_makefile_builds_it_with_the_same_words():
    recipe = (ROOT / "Makefile").read_text("utf-8")

    assert "python docs/_ext/fill_pages.py" in recipe
    assert "sphinx-build -q -E -W --keep-going docs build/docs" in recipe


def test_settings_and_figures_are_in_the_pages(site):
    settings, benchmarks = ((site / f"{name}.html").read_text("utf-8") for name in ("recipe", "benchmarks"))

    for section in Recipe.model_fields:
        assert f">[{section}]<" in settings or f">[[{section}]]<" in settings
    assert 'id="training-stage1-warmup-steps"' in settings
    pictures = list((DOCS / "pictures").glob("*.svg"))
    assert len(pictures) >= 8
    assert all(f"{one.name}" in benchmarks for one in pictures)


NOWHERE = {
    "[no such page](nowhere.md)": "nowhere.md",
    "[no such heading](other.md#elsewhere)": "elsewhere",
    "[no such file](../recipes/none.toml)": "none.toml",
    "[no such file above](../NONE.md#here)": "NONE.md",
    "![no such picture](none.svg)": "none.svg",
}


def test_each_link_that_leads_nowhere_fails_the_build(tmp_path):
    (tmp_path / "index.md").write_text(
        "# A page\n\n[well](other.md#here) [a folder](../)\n\n" + "\n\n".join(NOWHERE), "utf-8"
    )
    (tmp_path / "other.md").write_text("---\norphan: true\n---\n# Other\n\n## Here\n", "utf-8")

    done = build(tmp_path, tmp_path / "site")

    assert done.status != 0
    assert [name for name in NOWHERE.values() if name not in done.text] == []
    assert len(done.err.strip().splitlines()) == len(NOWHERE), "and nothing else is wrong"


def test_a_new_page_is_listed_without_being_named(tmp_path):
    for page in (*DOCS.glob("*.md"), DOCS / "runbook.md"):
        (tmp_path / page.name).write_text(f"# {page.stem}\n", "utf-8")
    for file in ("index.md", "stages.svg"):
        shutil.copy(DOCS / file, tmp_path)

    done = build(tmp_path, tmp_path / "site")

    assert done.status == 0, done.text
    assert 'href="runbook.html"' in (tmp_path / "site" / "index.html").read_text("utf-8")


@pytest.mark.parametrize("page", ["index", "recipe", "benchmarks"])
def test_pages_fit_their_window_and_load_nothing_from_elsewhere(site, page):
    with chromium() as driver:
        for width, theme in ((1400, "light"), (420, "dark")):
            show(driver, (site / f"{page}.html").as_uri(), width=width, theme=theme)
            assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
            assert not [one for one in driver.get_log("browser") if one["level"] == "SEVERE"]
        assert all(address.startswith(("file:", "data:")) for address in loaded(driver))
