"""Pictures and pages: each is shown or found, and stored figures are those of the tables of their page."""

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def test_each_picture_and_each_file_of_figures_is_named_by_a_page() -> None:
    pages = [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    for path in (DOCS / "img").iterdir():
        assert f"img/{path.name}" in text, path.name


def test_each_page_is_in_the_navigation_of_the_site() -> None:
    navigation = (DOCS.parent / "mkdocs.yml").read_text("utf-8")
    for page in DOCS.rglob("*.md"):
        assert f" {page.relative_to(DOCS).as_posix()}\n" in navigation, page


def test_the_figures_of_the_maxplus_picture_are_those_of_the_tables() -> None:
    figures = json.loads((DOCS / "img" / "maxplus.json").read_text("utf-8"))
    page = (DOCS / "results" / "2026-11-22-maxplus.md").read_text("utf-8")
    rates = {name: list(losses.values()) for name, losses in figures["500 steps, by learning rate"].items()}
    assert rates == {row[0].split(":")[0]: list(map(float, row[2:])) for row in rows(page, "| 500 steps")}
    seeds = {}
    for row in rows(page, "| 2,000 steps"):
        found = re.search(r"\((.*)\)", row[3])
        assert found is not None
        seeds[row[0].split(":")[0]] = list(map(float, found[1].split(", ")))
    assert figures["2,000 steps, of each seed"] == seeds


def test_the_figures_of_the_capabilities_picture_are_those_of_the_table() -> None:
    figures = json.loads((DOCS / "img" / "capabilities.json").read_text("utf-8"))
    page = (DOCS / "results" / "2026-11-22-capabilities.md").read_text("utf-8")
    shown: dict[str, Any] = {row[0]: list(map(float, row[1:])) for row in rows(page, "| accuracy")}
    assert {test: list(of_test.values()) for test, of_test in figures["accuracy"].items()} == shown


def rows(page: str, head: str) -> list[list[str]]:
    """The rows of the table whose first line begins with `head`, without their bold type."""
    lines = page[page.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]
