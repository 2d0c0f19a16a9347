"""`run`, `call`, `check_call` and `check_output`, as subprocess has them."""

from __future__ import annotations

import subprocess
from typing import Any, Optional

from ._errors import CalledProcessError, Report, TimeoutExpired, check_seconds
from ._popen import Popen


class CompletedProcess(subprocess.CompletedProcess[Any]):
    """Like `CompletedProcess` of subprocess. `report` is the report of pinfold."""

    report: Optional[Report] = None

    def check_returncode(self) -> None:
        """Raises `CalledProcessError` unless the command has ended with 0."""
        if self.returncode:
            error = CalledProcessError(self.returncode, self.args, self.stdout, self.stderr)
            error.report = self.report
            raise error


def run(
    args: Any,
    *arguments: Any,
    input: Any = None,
    capture_output: bool = False,
    timeout: Optional[float] = None,
    check: bool = False,
    **options: Any,
) -> CompletedProcess:
    """Like `subprocess.run`: runs a command, and returns when no process of it is left.

    After `timeout` seconds, pinfold stops all processes: SIGTERM, and SIGKILL after `grace` seconds (10 by default; 0
    kills at once). Then this raises `TimeoutExpired` with the output. An exception, such as KeyboardInterrupt, kills
    all processes.
    """
    timeout = check_seconds("timeout", timeout)
    if input is not None:
        if options.get("stdin") is not None:
            raise ValueError("stdin and input arguments may not both be used")
        options["stdin"] = subprocess.PIPE
    if capture_output:
        if options.get("stdout") is not None or options.get("stderr") is not None:
            raise ValueError("stdout and stderr arguments may not be used with capture_output")
        options["stdout"] = options["stderr"] = subprocess.PIPE
    with Popen[Any](args, *arguments, job_timeout=timeout, **options) as process:
        try:
            stdout, stderr = process.communicate(input)
        except BaseException:
            process.kill()
            raise
    return complete(process, stdout, stderr, timeout, check)


def complete(
    process: Popen[Any], stdout: Any, stderr: Any, timeout: Optional[float], check: bool
) -> CompletedProcess:
    """Returns the result of a command that has ended, or raises TimeoutExpired or CalledProcessError."""
    assert process.report is not None
    if timeout is not None and process.report["reason"] == "deadline":
        expired = TimeoutExpired(process.args, timeout, stdout, stderr)
        expired.report = process.report
        raise expired
    completed = CompletedProcess(process.args, process.returncode, stdout, stderr)
    completed.report = process.report
    if check:
        completed.check_returncode()
    return completed


def call(args: Any, *arguments: Any, timeout: Optional[float] = None, **options: Any) -> int:
    """Runs a command, and returns its `returncode`."""
    return int(run(args, *arguments, timeout=timeout, **options).returncode)


def check_call(args: Any, *arguments: Any, timeout: Optional[float] = None, **options: Any) -> int:
    """Runs a command, and raises `CalledProcessError` unless it ends with 0."""
    return int(run(args, *arguments, timeout=timeout, check=True, **options).returncode)


def check_output(args: Any, *arguments: Any, timeout: Optional[float] = None, **options: Any) -> Any:
    """Runs a command, and returns its standard output. Raises `CalledProcessError` unless it ends with 0."""
    if "stdout" in options:
        raise ValueError("stdout argument not allowed, it will be overridden")
    return run(args, *arguments, stdout=subprocess.PIPE, timeout=timeout, check=True, **options).stdout
