"""The page, in a browser."""

from __future__ import annotations

import shutil
from urllib.request import urlopen

import pytest

from bitquilt.serve.app import page_policy
from tests.serve.conftest import KEY, Running, running
from tests.talk.book import Book, reciting

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


ANSWER = (
    "## Steps\n\nIt is **bold** and <b>not</b> HTML <img src=x onerror=document.title='owned'>.\n\n"
    "- one\n- two\n\n```python\nprint('<i>')\n```\n\n[a](javascript:alert(1)) and [b](https://b.org)"
)
WATCH = """() => {
  const [said] = document.getElementsByClassName('markdown');
  window.taken = 0;
  new MutationObserver(all => all.forEach(one => one.removedNodes.forEach(node => {
    window.taken += node.nodeName === 'H3' || node.nodeName === 'UL' && !!node.nextSibling;
  }))).observe(said, { childList: true });
}"""


def test_an_answer_in_markdown() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}|"
    with (
        running(lambda: Book(reciting(ANSWER), template)) as server,
        playwright.sync_playwright() as started,
    ):
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        playwright.expect.set_options(timeout=60_000)
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(60_000)
        wrong, asked = [], []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.url)
        page.get_by_text("Settings").click()
        page.get_by_label("API key").fill(KEY)
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Message").fill("Go")
        page.get_by_label("Message").press("Enter")
        log = page.get_by_role("log")
        playwright.expect(log.get_by_role("heading", name="Steps")).to_be_visible()
        page.evaluate(WATCH)
        playwright.expect(log.get_by_role("link", name="b")).to_be_visible()
        playwright.expect(log).to_have_attribute("aria-busy", "false")

        assert page.evaluate("window.taken") == 0  # what stood stayed: nothing flickered
        assert log.get_by_role("listitem").all_inner_texts() == ["one", "two"]
        assert log.locator("pre code").inner_text() == "print('<i>')\n"
        assert "<b>not</b> HTML <img" in log.inner_text()
        assert log.get_by_role("link").evaluate_all("all => all.map(one => one.href)") == [
            "https://b.org/"
        ]
        assert log.locator("b, img, script").count() == 0
        button = log.get_by_role("button", name="Copy")
        above, code = button.bounding_box(), log.locator("pre code").bounding_box()
        assert above["y"] + above["height"] <= code["y"]  # it covers no line, however narrow
        button.click()
        playwright.expect(log.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == "print('<i>')\n"
        browser.close()
    assert wrong == []
    assert all(url.startswith(server.url) for url in asked)


def test_answers_are_regenerated_and_questions_edited() -> None:
    """On a dark phone, by keyboard; what the model is shown is the conversation as it stands."""
    seen: list[str] = []

    def model(so_far: str) -> dict[str, float]:
        if so_far.endswith("|"):
            seen.append(so_far)
        return reciting("Well.")(so_far)

    template = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}|"
    with (
        running(lambda: Book(model, template)) as server,
        playwright.sync_playwright() as started,
    ):
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        playwright.expect.set_options(timeout=60_000)
        page = browser.new_page(viewport={"width": 360, "height": 640}, color_scheme="dark")
        page.set_default_timeout(60_000)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(server.url)
        page.get_by_text("Settings").click()
        page.get_by_label("API key").fill(KEY)
        page.get_by_label("System prompt").fill("S")
        page.get_by_label("Top-p").fill("0.5")
        page.get_by_text("Settings").click()
        log, message = page.get_by_role("log"), page.get_by_label("Message")
        again = log.get_by_role("button", name="Regenerate")
        for text, answers in (("one", 1), ("two", 2)):
            message.fill(text)
            message.press("Enter")
            playwright.expect(log.get_by_text("Well.")).to_have_count(answers)
            playwright.expect(again).to_have_count(1)  # of the last answer only
        playwright.expect(log.get_by_text("5 tokens, ").last).to_contain_text("tokens/s")
        again.focus()
        page.keyboard.press("Enter")
        playwright.expect(message).to_be_focused()
        playwright.expect(again).to_be_visible()
        log.get_by_role("button", name="Edit this question").first.click()
        playwright.expect(message).to_have_value("one")
        playwright.expect(log.get_by_text("Well.")).to_have_count(0)
        message.fill("three")
        message.press("Enter")
        playwright.expect(again).to_be_visible()
        width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        ink = page.evaluate("getComputedStyle(document.body).backgroundColor")
        browser.close()
    assert wrong == []
    assert width[0] <= width[1]
    assert ink == "rgb(20, 23, 29)"
    second = "<s>S<u>one<a>Well.<u>two|"
    assert seen == ["<s>S<u>one|", second, second, "<s>S<u>three|"]


def test_the_page_may_run_no_script_but_its_own(demo: Running) -> None:
    with urlopen(demo.url) as response:
        policy, html = response.headers["Content-Security-Policy"], response.read()
    assert policy == page_policy(html.decode())
    assert "script-src 'sha256-" in policy
    assert "unsafe-inline'; script-src" in policy  # of styles only
    assert policy != page_policy(html.decode().replace("const talk", "let talk"))
