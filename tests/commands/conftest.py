"""Calls of the command line, in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from cli import main

Call = Callable[..., Result]


@pytest.fixture(scope="session")
def call() -> Call:
    """Call the command line, whatever the exit code."""

    def call_main(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return call_main
