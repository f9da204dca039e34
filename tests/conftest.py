"""Fixtures that several test files share."""

import pytest
from builders import write_base_model


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The tiny model and its processor on disk; tests that change it copy it first."""
    return write_base_model(tmp_path_factory.mktemp("models") / "base")
