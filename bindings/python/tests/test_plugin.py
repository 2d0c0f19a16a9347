"""The plugin of pytest finds, reports and ends what tests leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import BOUND, all_gone, pids

TESTS = """
import os, subprocess, sys, time
import pinfold, pytest

def start(seconds="1000"):
    # A daemon: its parent ends at once, and it has a session of its own.
    script = f"setsid sleep {seconds} >/dev/null & echo $!"
    pid = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, check=True).stdout.decode()
    with open(os.environ["PIDS"], "a") as file:
        file.write(pid)

@pytest.fixture(scope="session")
def server():
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.terminate()

def test_clean(server):
    assert pinfold.run(["true"]).returncode == 0

def test_leaves_a_daemon(server):
    start()

def test_leaves_a_job():
    global job
    job = pinfold.Popen(["sleep", "1000"])

def test_of_the_server(server):
    os.kill(server, 0)
    start("0.05")
"""


def run(tmp_path: Path, *options: str) -> tuple[str, int]:
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir=."]
    if subprocess.run([sys.executable, "-m", "pytest", "--help"], capture_output=True).stdout.find(b"pinfold") < 0:
        command += ["-p", "pinfold.pytest"]  # The package is not installed, but in sys.path.
    environment = {**os.environ, "PIDS": str(tmp_path / "pids")}
    command += [*options, "test_it.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=BOUND)
    return done.stdout + done.stderr, done.returncode


def test_error(tmp_path: Path) -> None:
    output, code = run(tmp_path, "--pinfold-leftovers=error")
    assert code == 1 and "4 passed, 2 errors" in output, output
    assert "test_leaves_a_daemon left 1 process: " in output and "sleep 1000" in output
    assert all_gone(pids(tmp_path / "pids"))


def test_warn(tmp_path: Path) -> None:
    output, code = run(tmp_path, "--pinfold-leftovers=warn")
    assert code == 0 and "test_leaves_a_job left 1 process: " in output, output
    assert all_gone(pids(tmp_path / "pids"))


def test_off(tmp_path: Path) -> None:
    output, code = run(tmp_path)
    assert code == 0 and "left" not in output
    (daemon, _) = pids(tmp_path / "pids")
    assert not all_gone([daemon])
    os.kill(daemon, 9)


@pytest.mark.parametrize("mode", ["loud", ""])
def test_an_invalid_setting(tmp_path: Path, mode: str) -> None:
    output, code = run(tmp_path, f"--pinfold-leftovers={mode}")
    assert code == 4 and "pinfold-leftovers" in output
