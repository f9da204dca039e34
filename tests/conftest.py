"""Fixtures that several test files share."""

import pytest
import torch
from builders import write_base_model


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The tiny model and its processor on disk; tests that change it copy it first."""
    return write_base_model(tmp_path_factory.mktemp("models") / "base")


def pytest_terminal_summary(terminalreporter):
    """Prints what tests recorded as their summary, also from the processes of pytest-xdist."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "summary" and report.when == "call":
                    terminalreporter.write_line(value)
