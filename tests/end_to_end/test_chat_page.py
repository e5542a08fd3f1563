"""The chat page of serve in a real browser, wide and narrow: a conversation, a mistake, a new chat."""

import shutil
from pathlib import Path

import pytest

from tests.evaluation.test_conversation import tiny
from tests.evaluation.test_serving import server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.nightly
@pytest.mark.skipif(CHROMIUM is None, reason="wants chromium, such as Debian's package of that name")
@pytest.mark.parametrize("width", [1400, 360])
def test_a_conversation_on_the_page(width: int, tmp_path: Path) -> None:
    browsing = pytest.importorskip("playwright.sync_api", reason="wants playwright")
    with server(tiny("v8")) as (port, served), browsing.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 700})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if "Security Policy" in message.text else None)
        page.goto(f"http://127.0.0.1:{port}/")
        browsing.expect(page.locator("#model")).to_have_text("tiny")
        for number, text in enumerate(("hi", "and a longer question, which takes more than one line"), start=1):
            page.fill("#text", text)
            page.press("#text", "Enter")
            browsing.expect(page.locator(".turn.assistant")).to_have_count(number)
            browsing.expect(page.locator("#send")).to_have_text("Send", timeout=60_000)
        turns = page.locator(".turn").all_inner_texts()
        assert [turn.split("\n")[0] for turn in turns] == ["you", "assistant"] * 2
        assert turns[2].endswith("more than one line") and len(served.prefixes) > 0
        fits = "document.documentElement.scrollWidth <= window.innerWidth"
        assert page.evaluate(fits), "the page is wider than the window"
        assert page.locator("#send").is_visible() and page.locator("#text").bounding_box()["width"] > 150
        page.screenshot(path=str(tmp_path / "talk.png"))
        # A mistake is shown, and what was not answered can be sent again.
        page.fill("#text", "a" * 300)
        page.click("#send")
        page.wait_for_selector(".turn.error")
        assert "shorten it" in page.inner_text(".turn.error")
        assert page.input_value("#text") == "a" * 300
        page.screenshot(path=str(tmp_path / "error.png"))
        page.click("#clear")
        assert page.locator(".turn").count() == 0
        browser.close()
    assert problems == []
