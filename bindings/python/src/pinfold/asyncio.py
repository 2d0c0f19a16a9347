"""`create_subprocess_exec` and `create_subprocess_shell`, as asyncio has them, for a command with all its processes."""

from __future__ import annotations

import asyncio
from functools import partial
from subprocess import DEVNULL as DEVNULL
from subprocess import PIPE as PIPE
from subprocess import STDOUT as STDOUT
from typing import IO, Any, Optional

from ._errors import Report
from ._popen import Popen

__all__ = ["DEVNULL", "PIPE", "STDOUT", "Process", "create_subprocess_exec", "create_subprocess_shell"]

_LIMIT = 2**16


class Process:
    """Like `asyncio.subprocess.Process`, for a job. `report` is the report of pinfold, once the job has ended."""

    stdin: Optional[asyncio.StreamWriter] = None
    stdout: Optional[asyncio.StreamReader] = None
    stderr: Optional[asyncio.StreamReader] = None

    def __init__(self, popen: Popen[bytes], ended: asyncio.Event) -> None:
        self._popen = popen
        self._ended = ended
        self.pid = popen.pid

    @property
    def returncode(self) -> Optional[int]:
        """The exit code, or the negative number of a signal; None while a process of the job is left."""
        return self._popen.poll()

    @property
    def report(self) -> Optional[Report]:
        """The report of pinfold; None while the job runs."""
        self._popen.poll()
        return self._popen.report

    async def wait(self) -> int:
        """Waits until no process of the job is left. Cancelling this leaves the job running."""
        await self._ended.wait()
        return self._popen.wait()

    async def communicate(self, input: Optional[bytes] = None) -> tuple[Optional[bytes], Optional[bytes]]:
        """Writes `input`, reads the outputs to their ends, and waits. Cancelling this leaves the job running."""

        async def write() -> None:
            if self.stdin is not None:
                try:
                    if input is not None:
                        self.stdin.write(input)
                        await self.stdin.drain()
                except (BrokenPipeError, ConnectionResetError):
                    pass  # As asyncio and subprocess do: the command need not read its input.
                self.stdin.close()

        async def read(stream: Optional[asyncio.StreamReader]) -> Optional[bytes]:
            return None if stream is None else await stream.read()

        _, stdout, stderr = await asyncio.gather(write(), read(self.stdout), read(self.stderr))
        await self.wait()
        return stdout, stderr

    def send_signal(self, signal: int) -> None:
        """Sends a signal to the main process."""
        self._popen.send_signal(signal)

    def terminate(self) -> None:
        """Stops all processes of the job: SIGTERM, and SIGKILL after the grace period. Does not wait."""
        self._popen.terminate()

    def kill(self) -> None:
        """Kills all processes of the job. Does not wait."""
        self._popen.kill()


async def create_subprocess_exec(
    program: Any, *args: Any, stdin: Any = None, stdout: Any = None, stderr: Any = None, limit: int = _LIMIT, **kwds: Any
) -> Process:
    """Starts a command. The further arguments are those of `pinfold.Popen`.

    If this is cancelled, the command is killed.
    """
    return await _create([program, *args], stdin, stdout, stderr, limit, kwds)


async def create_subprocess_shell(
    cmd: Any, stdin: Any = None, stdout: Any = None, stderr: Any = None, limit: int = _LIMIT, **kwds: Any
) -> Process:
    """Starts a command of the shell. The further arguments are those of `pinfold.Popen`."""
    return await _create(cmd, stdin, stdout, stderr, limit, {**kwds, "shell": True})


async def _create(args: Any, stdin: Any, stdout: Any, stderr: Any, limit: int, kwds: dict[str, Any]) -> Process:
    loop = asyncio.get_running_loop()
    start = partial(Popen[bytes], args, 0, stdin=stdin, stdout=stdout, stderr=stderr, **kwds)
    # A start waits for pinfold for a moment, which must not block the loop.
    starting = loop.run_in_executor(None, start)
    try:
        popen = await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.add_done_callback(_kill_started)
        raise
    ended = asyncio.Event()
    process = Process(popen, ended)

    def on_end() -> None:
        try:
            loop.call_soon_threadsafe(ended.set)
        except RuntimeError:
            pass  # The loop is closed.

    popen._job.when_ended(on_end)
    process.stdout = await _reader(loop, popen.stdout, limit)
    process.stderr = await _reader(loop, popen.stderr, limit)
    if popen.stdin is not None:
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, popen.stdin)
        process.stdin = asyncio.StreamWriter(transport, protocol, None, loop)
    return process


def _kill_started(starting: asyncio.Future[Popen[bytes]]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().kill()


async def _reader(loop: asyncio.AbstractEventLoop, file: Optional[IO[bytes]], limit: int) -> Optional[asyncio.StreamReader]:
    if file is None:
        return None
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader, loop=loop), file)
    return reader
