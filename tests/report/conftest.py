"""The made-up report as a fixture."""

import pytest
from example_report import Case, make_case


@pytest.fixture
def case() -> Case:
    return make_case()
