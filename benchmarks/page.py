"""The report's page in headless Chromium: first paint, requests, errors, accessibility, pictures.

pip install playwright; apt install chromium; npm install axe-core
python benchmarks/page.py WORKDIR node_modules/axe-core/axe.min.js PICTURES
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from bitquilt.report import page

SCREENS = {
    "desktop": (1100, 850, "light"),
    "desktop-dark": (1100, 850, "dark"),
    "phone": (390, 844, "light"),
    "phone-dark": (390, 844, "dark"),
}
PAINT = "performance.getEntriesByName('first-paint').map(entry => entry.startTime)[0]"
OVERFLOW = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


def main() -> None:
    """Check the page of a work directory on every screen."""
    work, axe, pictures = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    pictures.mkdir(parents=True, exist_ok=True)
    path = pictures.resolve() / "report.html"
    page.write_page(page.make_report(work), path)
    print(f"{path.stat().st_size:,} bytes")
    with sync_playwright() as driver:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (width, height, scheme) in SCREENS.items():
            check(browser, path, axe, pictures / f"{name}.png", (width, height), scheme)
        browser.close()


def check(
    browser: Browser, path: Path, axe: str, picture: Path, size: tuple[int, int], scheme: str
) -> None:
    """One screen: everything that should be nothing, and a picture."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    shown, said, asked = context.new_page(), [], []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(path.as_uri())
    paint, wide = shown.evaluate(PAINT), shown.evaluate(OVERFLOW)
    shown.screenshot(path=picture, full_page=True)
    shown.add_script_tag(path=axe)
    violations = shown.evaluate("axe.run()")["violations"]
    requests = [url for url in asked[1:] if not url.startswith("data:")]
    first = f"{paint:.0f} ms" if paint is not None else "not told"
    print(
        f"{picture.stem}: first paint {first}; console {said}; requests {requests}; "
        f"wider than the screen: {wide}; axe {[v['id'] for v in violations]}"
    )
    context.close()


if __name__ == "__main__":
    main()
