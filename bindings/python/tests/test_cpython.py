"""CPython's own tests of the executor. All of them take a minute: PINFOLD_CPYTHON=1 runs all, otherwise some run."""

from __future__ import annotations

import os
import subprocess
import sys

import cpython_suite
import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
SOME = ["test_killed_child", "test_traceback", "test_map_chunksize", "test_crash_big_data", "test_error_at_task_unpickle"]


def test_they_pass() -> None:
    words = [] if os.environ.get("PINFOLD_CPYTHON") else SOME
    command = [sys.executable, os.path.join(HERE, "cpython_suite.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode == 77:
        pytest.skip(done.stderr)
    assert done.returncode == 0 and "failed 0, skipped 0" in done.stdout, done.stdout + done.stderr


def test_the_page_lists_what_does_not_apply() -> None:
    with open(os.path.join(HERE, os.pardir, "CPYTHON.md")) as file:
        rows = [line.split(" | ", 1) for line in file if line.startswith("| `")]
    assert {name.strip("| `"): reason.strip("\n |") for name, reason in rows} == cpython_suite.NOT_APPLICABLE
