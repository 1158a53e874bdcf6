"""The page, in a browser: on a desk and on a dark phone, by mouse, by keyboard and by ear."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import urlopen

import pytest

from bitquilt.serve.app import page_policy
from tests.png import colours, png
from tests.serve.conftest import KEY, Running, running
from tests.talk.book import Book, SeeingBook, reciting

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MINUTE = 60_000
TEMPLATE = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}|"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests: it takes longer to start than all of them."""
    with playwright.sync_playwright() as started:
        playwright.expect.set_options(timeout=MINUTE)
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page of a server; no script of it fails, and it asks no other server."""
    contexts, wrong, asked, servers = [], [], [], []

    def open_page(server: Running, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(MINUTE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        servers.append(server.url)
        page.goto(server.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
    assert all(url.startswith(tuple(servers)) for url in asked)


def set_up(page: Any, **settings: str) -> None:
    """Fill in settings, by their labels."""
    page.get_by_text("Settings").click()
    for name, value in {"API key": KEY, **settings}.items():
        page.get_by_label(name.replace("_", " ")).fill(value)
    page.get_by_text("Settings").click()


def ask(page: Any, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def test_a_conversation(demo: Running, visit: Callable[..., Any]) -> None:
    page = visit(demo, viewport={"width": 390, "height": 780})
    playwright.expect(page.get_by_role("heading", name="demo")).to_be_visible()
    page.get_by_label("Message").fill("What is 347 + 585?")
    page.get_by_role("button", name="Send").click()
    playwright.expect(page.get_by_text("the API key is wrong")).to_be_visible()

    set_up(page, Temperature="0")
    ask(page, "What is 347 + 585?")
    playwright.expect(page.get_by_text("Answer: 932")).to_be_visible()
    thoughts = page.get_by_text("column by column")
    playwright.expect(thoughts).to_be_hidden()
    page.get_by_role("log").get_by_text("Thinking").click()
    playwright.expect(thoughts).to_be_visible()
    playwright.expect(page.get_by_role("log")).to_have_attribute("aria-busy", "false")

    page.get_by_role("button", name="New conversation").click()
    playwright.expect(page.get_by_text("932")).to_have_count(0)


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


def test_an_answer_in_markdown(visit: Callable[..., Any]) -> None:
    with running(lambda: Book(reciting(ANSWER), TEMPLATE)) as server:
        page = visit(server, permissions=["clipboard-read", "clipboard-write"])
        set_up(page, Temperature="0")
        ask(page, "Go")
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


def keeping(seen: list[str]) -> Callable[[str], dict[str, float]]:
    """Make a model that says "Well." and keeps the prompts that it is shown."""

    def model(so_far: str) -> dict[str, float]:
        if so_far.endswith("|"):
            seen.append(so_far)
        return reciting("Well.")(so_far)

    return model


def test_answers_are_regenerated_and_questions_edited(visit: Callable[..., Any]) -> None:
    """On a dark phone, by keyboard; what the model is shown is the conversation as it stands."""
    seen: list[str] = []

    with running(lambda: Book(keeping(seen), TEMPLATE)) as server:
        page = visit(server, viewport={"width": 360, "height": 640}, color_scheme="dark")
        set_up(page, System_prompt="S", **{"Top-p": "0.5"})
        log, message = page.get_by_role("log"), page.get_by_label("Message")
        again = log.get_by_role("button", name="Regenerate")
        for text, answers in (("one", 1), ("two", 2)):
            ask(page, text)
            playwright.expect(log.get_by_text("Well.")).to_have_count(answers)
            playwright.expect(again).to_have_count(1)  # of the last answer only
        playwright.expect(log.get_by_text("5 tokens, ").last).to_contain_text("tokens/s")
        page.get_by_text("Settings").click()  # they scroll, and leave room for what is asked
        playwright.expect(message).to_be_in_viewport(ratio=1)
        playwright.expect(page.get_by_role("button", name="Send")).to_be_in_viewport(ratio=1)
        page.get_by_text("Settings").click()
        again.focus()
        page.keyboard.press("Enter")
        playwright.expect(message).to_be_focused()
        playwright.expect(again).to_be_visible()
        log.get_by_role("button", name="Edit this question").first.click()
        playwright.expect(message).to_have_value("one")
        playwright.expect(log.get_by_text("Well.")).to_have_count(0)
        ask(page, "three")
        playwright.expect(again).to_be_visible()
        width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        ink = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert width[0] <= width[1]
    assert ink == "rgb(20, 23, 29)"
    second = "<s>S<u>one<a>Well.<u>two|"
    assert seen == ["<s>S<u>one|", second, second, "<s>S<u>three|"]


def test_all_of_it_is_reached_by_keyboard(visit: Callable[..., Any]) -> None:
    """Tab goes through everything, in the order in which it stands; what has the focus shows it."""
    focused = "document.activeElement"
    name = f"{focused}.ariaLabel || {focused}.labels?.[0]?.innerText || {focused}.innerText"
    with running(lambda: Book(reciting("```\na\n```"), TEMPLATE)) as server:
        page = visit(server)
        set_up(page)
        ask(page, "Go")
        playwright.expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
        page.get_by_role("button", name="New conversation").focus()
        reached, outlines = [], set()
        for _ in range(8):
            page.keyboard.press("Tab")
            reached.append(str(page.evaluate(name)).strip())
            outlines.add(page.evaluate(f"getComputedStyle({focused}).outlineStyle"))
    assert reached == [
        "Conversation",
        "Edit this question",
        "Copy",
        "a",  # code that scrolls
        "Regenerate the answer",
        "Settings",
        "Message",
        "Send",
    ]
    assert outlines == {"solid"}


HEARD = """\
- banner:
  - heading "model" [level=1]
  - button "New conversation"
- main:
  - log "Conversation":
    - article:
      - heading "You" [level=2]
      - text: Go
      - button "Edit this question": Edit
    - article:
      - heading "Model" [level=2]
      - heading "Sum" [level=3]
      - paragraph: It is 3.
      - text: /\\d+ tokens, [\\d.]+ tokens\\/s/
      - button "Regenerate the answer": Regenerate
  - group: Settings
  - status
  - text: Message
  - textbox "Message"
  - button "Send"
"""


def test_what_a_screen_reader_is_told(visit: Callable[..., Any]) -> None:
    with running(lambda: Book(reciting("# Sum\n\nIt is 3."), TEMPLATE)) as server:
        page = visit(server)
        set_up(page)
        ask(page, "Go")
        playwright.expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
        playwright.expect(page.locator("body")).to_match_aria_snapshot(HEARD)


def image(name: str, width: int, height: int) -> dict[str, Any]:
    """A file as somebody chooses it."""
    return {"name": name, "mimeType": "image/png", "buffer": png(colours(width, height))}


def test_images_go_with_a_message(visit: Callable[..., Any]) -> None:
    """By keyboard, on a phone; they are told to who cannot see them, and come back for editing."""
    seen: list[str] = []

    with running(lambda: SeeingBook(keeping(seen), TEMPLATE)) as server:
        page = visit(server, viewport={"width": 360, "height": 640})
        page.on("filechooser", lambda _: None)  # else dialogs are caught a moment too late
        set_up(page)
        log, form, status = (page.get_by_role(one) for one in ("log", "list", "status"))
        # the button is there once the server has said that the model sees
        playwright.expect(page.get_by_role("button", name="Add image")).to_be_visible()
        page.get_by_label("Message").focus()
        page.keyboard.press("Tab")
        with page.expect_file_chooser() as choosing:
            page.keyboard.press("Enter")
        broken = {"name": "c.png", "mimeType": "image/png", "buffer": b"none"}
        choosing.value.set_files([image("a.png", 40, 20), image("b.png", 4096, 64), broken])
        playwright.expect(status).to_have_text("c.png is not an image that this browser can read.")
        playwright.expect(page.get_by_label("Message")).to_be_focused()
        for name in ("a.png", "b.png"):
            playwright.expect(form.get_by_role("img", name=name)).to_be_visible()
        width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1]
        ask(page, "What?")
        playwright.expect(log.get_by_text("Well.")).to_be_visible()
        playwright.expect(log.get_by_role("img")).to_have_count(2)
        playwright.expect(log).to_have_attribute("aria-busy", "false")
        log.get_by_role("button", name="Edit this question").click()
        playwright.expect(log.get_by_role("img")).to_have_count(0)
        page.get_by_role("button", name="Remove b.png").press("Enter")
        page.get_by_label("Message").fill("")
        page.get_by_role("button", name="Send").click()  # an image alone
        playwright.expect(log.get_by_role("img", name="a.png")).to_be_visible()
        playwright.expect(log.get_by_text("Well.")).to_be_visible()
    # what is larger than 2,048 pixels is made smaller before it is sent
    assert seen == ["<u>{40x20}\n{2048x32}\nWhat?|", "<u>{40x20}|"]


PASTE = """image => {
  const given = new DataTransfer();
  given.items.add(new File([new Uint8Array(image)], "a.png", { type: "image/png" }));
  const event = new ClipboardEvent("paste", { clipboardData: given, cancelable: true });
  document.activeElement.dispatchEvent(event);
}"""


def test_images_are_pasted_and_refused_where_none_is_seen(visit: Callable[..., Any]) -> None:
    for book, said in (
        (SeeingBook, "a.png goes with the message."),
        (Book, "model reads text only: images need a GGUF file of a model that sees"),
    ):
        with running(lambda book=book: book(reciting("Well."), TEMPLATE)) as server:
            page = visit(server)
            playwright.expect(page.get_by_role("heading", name="model")).to_be_visible()
            adding = page.get_by_role("button", name="Add image")
            playwright.expect(adding).to_have_count(1 if book is SeeingBook else 0)
            page.get_by_label("Message").focus()
            page.evaluate(PASTE, list(png(colours(8, 8))))
            playwright.expect(page.get_by_role("status")).to_contain_text(said)


def test_an_answer_is_stopped_and_the_next_question_does_not_know_it(
    visit: Callable[..., Any],
) -> None:
    long = "Word." + "".join(random.Random(0).choices("abcdefg ", k=9000))  # nothing repeats
    with running(lambda: Book(reciting(long), TEMPLATE, context=20_000)) as server:
        page = visit(server)
        set_up(page)
        ask(page, "Go")
        playwright.expect(page.get_by_text("Word.")).to_be_visible()
        page.get_by_role("button", name="Stop").press("Enter")
        playwright.expect(page.get_by_text("stopped, and not kept")).to_be_visible()
        assert page.evaluate("messages.length") == 0
        assert server.settles()


def test_the_page_may_run_no_script_but_its_own(demo: Running) -> None:
    with urlopen(demo.url) as response:
        policy, html = response.headers["Content-Security-Policy"], response.read()
    assert policy == page_policy(html.decode())
    assert "script-src 'sha256-" in policy
    assert "unsafe-inline'; script-src" in policy  # of styles only
    assert policy != page_policy(html.decode().replace("const talk", "let talk"))
