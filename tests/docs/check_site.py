"""Checks a built site: what a page loads lies beside it, so that it asks the network for nothing.

Run by `make docs` as a script: `check_site.py out/site`. Links that a reader may follow to elsewhere are no loading.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
ONLY_SAID = {"canonical", "prev", "next", "alternate"}
"""Relations of a `link` that make a browser load nothing."""


class _Page(HTMLParser):
    """Collects what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get(LOADED.get(tag, ""))
        if address and not (tag == "link" and given.get("rel") in ONLY_SAID):
            self.loaded.append(address)


def problems(site: Path) -> Iterator[str]:
    """Everything that a page of the site loads from elsewhere, or that is not there."""
    for file in sorted(site.rglob("*.html")):
        page = _Page()
        page.feed(file.read_text(encoding="utf-8"))
        for address in page.loaded:
            parts = urlsplit(address)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                yield f"{file.relative_to(site)} loads {address}"
            elif file.name != "404.html" and not (file.parent / unquote(parts.path)).is_file():
                yield f"{file.relative_to(site)} loads {address}, which is not there"
    for style in sorted(site.rglob("*.css")):
        if "url(http" in (text := style.read_text(encoding="utf-8")) or "@import" in text:
            yield f"{style.relative_to(site)} loads from elsewhere"


if __name__ == "__main__":
    found = list(problems(Path(sys.argv[1])))
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    sys.exit(bool(found))
