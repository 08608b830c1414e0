"""The made-up report as a fixture."""

import pytest
from example_report import make_run

from depthcut.report import Run


@pytest.fixture
def run() -> Run:
    return make_run()
