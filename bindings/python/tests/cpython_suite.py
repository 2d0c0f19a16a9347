"""Runs CPython's own tests of concurrent.futures.ProcessPoolExecutor (those of the start method `spawn`).

The tests use pinfold's executor in place of that class.

usage: python cpython_suite.py [WORD...]     runs the tests whose names contain one of the words, or all
The exit code is 0 if each test has the outcome that is written below. Needs the package `test` of CPython.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import sys
import unittest
from typing import Any

import pinfold

INTERNAL = "looks at threads and queues inside of concurrent.futures"
NOT_APPLICABLE = {
    "test_cancel_futures": "expects that calls that run survive `shutdown(cancel_futures=True)`; pinfold cancels them",
    "test_del_shutdown": INTERNAL,
    "test_shutdown_no_wait": INTERNAL,
    "test_shutdown_deadlock_pickle": INTERNAL,
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": INTERNAL,
    "test_python_finalization_error": INTERNAL,
    "test_context_manager_shutdown": "tests concurrent.futures.ProcessPoolExecutor by that name, not the given class",
    "test_max_workers_too_large": "Windows only",
    "test_spawn": "needs that no process has used the resource tracker before (test_init, a test of that tracker)",
    "test_hang_gh83386": "CPython skips it for processes; its program for `spawn` lacks an import",
    "test_forkserver": "fork server only",
}
MODULES = ["test_process_pool", "test_shutdown", "test_wait", "test_as_completed", "test_init", "test_deadlock"]


def load() -> list[Any]:
    """Returns the modules that contain the tests: a package since CPython 3.12, one module before."""
    try:
        package = importlib.import_module("test.test_concurrent_futures")
    except ImportError:
        print("CPython's tests are not installed (Debian: libpython3-testsuite)", file=sys.stderr)
        sys.exit(77)
    if not hasattr(package, "__path__"):
        package.ProcessPoolSpawnMixin.executor_type = pinfold.ProcessPoolExecutor  # type: ignore[attr-defined]
        return [package]
    util = importlib.import_module("test.test_concurrent_futures.util")
    util.ProcessPoolSpawnMixin.executor_type = pinfold.ProcessPoolExecutor  # type: ignore[attr-defined]
    return [importlib.import_module(f"test.test_concurrent_futures.{name}") for name in MODULES]


def with_pinfold(module: Any) -> None:
    """Makes programs that a test writes import pinfold's executor."""
    original = getattr(module, "assert_python_ok", None)
    if original is not None:

        def changed(option: str, program: str, **options: Any) -> Any:
            return original(option, program.replace("from concurrent.futures import", "from pinfold import"), **options)

        module.assert_python_ok = changed


class Result(unittest.TextTestResult):
    """Notes the outcome of each test."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.passed: list[str] = []

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self.passed.append(test.id())


def tests(suite: Any) -> Any:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests(test)
        else:
            yield test


def main() -> None:
    words = sys.argv[1:]
    chosen = unittest.TestSuite()
    excluded: set[str] = set()
    for module in load():
        with_pinfold(module)
        for test in tests(unittest.defaultTestLoader.loadTestsFromModule(module)):
            name = test.id().rsplit(".", 1)[1]
            if not issubclass(getattr(type(test), "executor_type", object), pinfold.ProcessPoolExecutor):
                continue
            if name in NOT_APPLICABLE:
                excluded.add(name)
            elif not words or any(word in test.id() for word in words):
                chosen.addTest(test)
    pinfold.run(["true"])  # The threads of the connection exist before the first test, which counts threads.
    result = unittest.TextTestRunner(verbosity=2, resultclass=Result).run(chosen)
    assert isinstance(result, Result)
    assert concurrent.futures.ProcessPoolExecutor is not pinfold.ProcessPoolExecutor
    print(f"passed {len(result.passed)}, failed {len(result.failures) + len(result.errors)}, ", end="")
    print(f"skipped {len(result.skipped)}, not applicable {len(excluded)}")
    sys.exit(0 if result.wasSuccessful() and result.passed else 1)


if __name__ == "__main__":
    main()
