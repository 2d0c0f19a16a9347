"""subprocess, multiprocessing and concurrent.futures with jobs: no process outlives its job.

Each command, process and worker is a job of pinfold: the process and every process that descends from it. The end of a
job ends all of these, and when this program ends, in any way, its jobs end too.
"""

from __future__ import annotations

import importlib
from subprocess import DEVNULL, PIPE, STDOUT, SubprocessError
from typing import TYPE_CHECKING, Any

from ._binary import find_pinfold
from ._errors import CalledProcessError, CallTimeout, PinfoldError, Report, RequestError, ServeEnded, TimeoutExpired
from ._popen import Popen
from ._run import CompletedProcess, call, check_call, check_output, run
from ._serve import configure

if TYPE_CHECKING:
    from ._executor import ProcessPoolExecutor as ProcessPoolExecutor
    from ._process import *  # noqa: F403
    from ._process import Process as Process

_LAZY = {"ProcessPoolExecutor": "_executor"}
_PROCESS = (
    "Array Barrier BoundedSemaphore Condition Event JoinableQueue Lock Manager Pipe Process Queue RLock Semaphore "
    "SimpleQueue Value active_children current_process parent_process"
).split()
_LAZY.update(dict.fromkeys(_PROCESS, "_process"))


def __getattr__(name: str) -> Any:
    # multiprocessing is loaded only by a program that uses a part of it.
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CallTimeout",
    "CalledProcessError",
    "CompletedProcess",
    "PinfoldError",
    "Popen",
    "Process",
    "ProcessPoolExecutor",
    "Report",
    "RequestError",
    "ServeEnded",
    "SubprocessError",
    "TimeoutExpired",
    "call",
    "check_call",
    "check_output",
    "configure",
    "find_pinfold",
    "run",
]
