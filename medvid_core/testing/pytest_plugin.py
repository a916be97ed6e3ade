"""The option ``--medvid-plugin`` of pytest. Loaded in every pytest run, so it imports nothing until it is asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from medvid_core.testing.subject import Subject

SUBJECT: pytest.StashKey[Subject] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("medvid").addoption(
        "--medvid-plugin",
        metavar="DISTRIBUTION",
        help="check that an installed medvid plugin keeps its promises; without further arguments, that alone",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose the checks for what the distribution offers, unless files were named."""
    distribution = config.getoption("--medvid-plugin", default=None)
    if not distribution:
        return
    from medvid_core.errors import PluginError
    from medvid_core.testing import subject, worker

    try:
        config.stash[SUBJECT] = subject.find(distribution)
    except PluginError as error:
        raise pytest.UsageError(str(error)) from error
    config.pluginmanager.register(worker, "medvid-conformance-worker")
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        checks = config.stash[SUBJECT].checks()
        config.args = [str(subject.CHECKS)]  # the folder, so that tests are called after their file
        for path in checks:
            config.addinivalue_line("python_files", str(path))


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what is checked."""
    return config.stash[SUBJECT].describe() if SUBJECT in config.stash else None
