"""The exceptions of this package."""

from __future__ import annotations

import concurrent.futures
import math
import subprocess
from typing import Any, Optional

Report = dict[str, Any]
"""What pinfold reports about a job that has ended; docs/report.schema.json describes the fields."""


class PinfoldError(RuntimeError):
    """pinfold itself failed, or refused a request."""


class RequestError(PinfoldError):
    """pinfold refused a request, and started nothing for it. `request` is the request as it was sent."""

    def __init__(self, request: dict[str, Any], message: str) -> None:
        super().__init__(f"{request['op']}: {message}")
        self.request = request
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.request, self.message)


class ServeEnded(PinfoldError):
    """The `pinfold serve` process of this program has ended, and with it all jobs."""


class TimeoutExpired(subprocess.TimeoutExpired):
    """A command reached its timeout, and no process of it is left. `report` is the report of pinfold.

    `report` is None where the command still runs, as after `Popen.wait(timeout)`.
    """

    report: Optional[Report] = None


class CalledProcessError(subprocess.CalledProcessError):
    """A command failed. `report` is the report of pinfold."""

    report: Optional[Report] = None


class CallTimeout(concurrent.futures.TimeoutError):
    """A call of an executor reached its timeout. Its worker and all processes that it had started have been ended."""


def check_seconds(name: str, value: Optional[float]) -> Optional[float]:
    """Returns the seconds as a float. Raises ValueError unless they are None or a finite number from 0 up."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if isinstance(value, (str, bytes, bool)) or not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{name}={value!r} is invalid: it must be None or a finite number of seconds from 0 up")
    return seconds
