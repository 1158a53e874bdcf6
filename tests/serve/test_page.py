"""The page, in a browser."""

from __future__ import annotations

import shutil

import pytest

from tests.serve.conftest import KEY, Running

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def test_a_conversation(demo: Running) -> None:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        playwright.expect.set_options(timeout=60_000)
        page = browser.new_page(viewport={"width": 390, "height": 780})
        page.set_default_timeout(60_000)
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(demo.url)
        playwright.expect(page.get_by_role("heading", name="demo")).to_be_visible()

        page.get_by_label("Message").fill("What is 347 + 585?")
        page.get_by_role("button", name="Send").click()
        playwright.expect(page.get_by_text("the API key is wrong")).to_be_visible()

        page.get_by_text("Settings").click()
        page.get_by_label("API key").fill(KEY)
        page.get_by_label("Temperature").fill("0")
        page.get_by_text("Settings").click()
        page.get_by_label("Message").fill("What is 347 + 585?")
        page.get_by_label("Message").press("Enter")
        playwright.expect(page.get_by_text("Answer: 932")).to_be_visible()
        thoughts = page.get_by_text("column by column")
        playwright.expect(thoughts).to_be_hidden()
        page.get_by_role("log").get_by_text("Thinking").click()
        playwright.expect(thoughts).to_be_visible()
        playwright.expect(page.get_by_role("log")).to_have_attribute("aria-busy", "false")

        page.get_by_role("button", name="New conversation").click()
        playwright.expect(page.get_by_text("932")).to_have_count(0)
        browser.close()
    assert wrong == []
    assert all(url.startswith(demo.url) for url in asked)
