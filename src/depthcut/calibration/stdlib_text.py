"""The text every Python carries: the language reference behind `help()`, as one document a topic.

No download and no file is needed, so it is what to reach for on a machine without a network. It is technical English
prose with markup, about 460 000 characters; the text differs between Python versions, which is why the description
names the version. Several topics contain others whole: only the digests of their lines tell that they overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from pydoc_data.topics import topics


def read_topics() -> Iterator[str]:
    """The topics in the order of their names, which does not change from run to run."""
    for name in sorted(topics):
        yield topics[name]
