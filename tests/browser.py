"""A browser that tells what a page did."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(CHROMIUM_NAMES)} is on the PATH (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Witness:
    """What happened while a page was open, beside loading the one file that it is."""

    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)


Opener = Callable[..., Any]


@pytest.fixture
def opened(browser: Any) -> Iterator[Opener]:
    """`opened(file, ...)`: the page in a browser window of its own; at the end it must have been quiet.

    Further arguments are Playwright's: the window's `viewport`, `color_scheme`, `java_script_enabled`.
    """
    contexts = []
    witnesses = []

    def open_page(file: Path, **options: object) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page, witness = context.new_page(), Witness()
        witnesses.append(witness)
        page.on("request", lambda request: witness.requests.append(request.url))
        page.on("console", lambda message: witness.messages.append(message.text))
        page.on("pageerror", lambda error: witness.messages.append(str(error)))
        page.on("dialog", lambda dialog: (witness.dialogs.append(dialog.message), dialog.dismiss()))
        page.set_default_timeout(60_000)  # on a machine that is busy with other things
        page.goto(file.as_uri())
        assert witness.requests == [file.as_uri()]
        return page

    yield open_page
    for context in contexts:
        context.close()
    for witness in witnesses:
        assert witness.messages == []
        assert witness.dialogs == []
        # Beside the file itself: its empty icon, and the plan that it hands out, both of which are in it.
        assert [url for url in witness.requests[1:] if not url.startswith(("data:", "blob:"))] == []
