"""`Popen`, like that of subprocess, for a command with all its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any, AnyStr, Optional

from ._errors import Report, TimeoutExpired, check_seconds
from ._pump import Feeder, Pump, is_null
from ._serve import Job, Listener, Serve, serve

_UNSUPPORTED = ("preexec_fn", "pass_fds", "executable", "startupinfo", "creationflags", "extra_groups")


class Streams(Listener):
    """Connects the descriptors that subprocess has made with the messages of the job."""

    def __init__(self, stdin: int, stdout: int, stderr: Optional[int]) -> None:
        # Each copy of a descriptor is closed when the job has ended.
        self._feeder = None if stdin == -1 or is_null(stdin) else Feeder(stdin)
        self._pumps = {"stdout": self._pump("stdout", stdout, 1)}
        if stderr is not None:
            self._pumps["stderr"] = self._pump("stderr", stderr, 2)

    def submit(self, connection: Serve, spec: dict[str, Any]) -> Job:
        options: dict[str, Any] = {"stdin": "stream"} if self._feeder else {}
        if not any(self._pumps.values()):
            options["output"] = "none"
        job = connection.submit({**spec, "env": connection.environment(spec["env"])}, self, **options)
        if self._feeder:
            self._feeder.start(job.write, job.close_input)
        return job

    def _pump(self, stream: str, fd: int, inherited: int) -> Optional[Pump]:
        if fd == -1:
            # As a child process does, the job writes to this process's own descriptor, even if sys.stdout was replaced.
            try:
                os.fstat(inherited)
            except OSError:
                return None
            fd = inherited
        return None if is_null(fd) else Pump(fd, lambda count: self.job.credit(stream, count))

    def output(self, stream: str, data: bytes) -> None:
        pump = self._pumps[stream]
        if pump is None:
            self.job.credit(stream, len(data))
        else:
            pump.write(data)

    def input_written(self, count: int) -> None:
        if self._feeder:
            self._feeder.written(count)

    def input_closed(self) -> None:
        if self._feeder:
            self._feeder.close()

    def ended(self) -> None:
        self.input_closed()
        for pump in self._pumps.values():
            if pump is not None:
                pump.close()


class Popen(subprocess.Popen[AnyStr]):
    """Like `subprocess.Popen`, for a job: the command and every process that descends from it.

    `wait`, `communicate` and `poll` report the end when no process of the job is left. `terminate` stops all processes
    (SIGTERM, and SIGKILL after `grace` seconds), `kill` kills all, `send_signal` sends a signal to the command alone.
    When this program ends, in any way, the job ends too. `report` is the report of pinfold, once the job has ended.

    Arguments in addition to those of subprocess: `job_timeout` (seconds after which pinfold stops the job), `grace`
    (seconds), `limits`, `sandbox` and `name` (docs/serve.md). The arguments `preexec_fn`, `pass_fds`, `executable`,
    `extra_groups` and `umask` raise ValueError. `close_fds`, `restore_signals`, `start_new_session` and
    `process_group` are ignored: a job inherits no descriptors and has a process group of its own. With `stdin=None`
    the standard input is empty.
    """

    report: Optional[Report] = None

    def __init__(
        self,
        args: Any,
        *arguments: Any,
        job_timeout: Optional[float] = None,
        grace: Optional[float] = None,
        limits: Optional[dict[str, Any]] = None,
        sandbox: Optional[dict[str, Any]] = None,
        name: Optional[str] = None,
        **options: Any,
    ) -> None:
        settings = {
            "timeout": check_seconds("job_timeout", job_timeout),
            "grace": check_seconds("grace", grace),
            "limits": limits,
            "sandbox": sandbox,
            "name": name,
        }
        self._spec: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
        for option in _UNSUPPORTED:
            if options.get(option):
                raise ValueError(f"{option} is not supported: pinfold starts the command, not this process")
        if options.get("umask", -1) != -1:
            raise ValueError("umask is not supported: pinfold starts the command, not this process")
        super().__init__(args, *arguments, **options)

    # subprocess calls this with the arguments of its constructor and the descriptors that it has made (CPython 3.9 to
    # 3.13, Lib/subprocess.py). Python 3.11 added process_group at the end.
    def _execute_child(self, *arguments: Any) -> None:
        (given, _executable, _preexec, _close_fds, _pass_fds, cwd, env, _startup, _flags, shell, *rest) = arguments
        (p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, _restore_signals, gid, _gids, uid, *_) = rest
        args: list[Any] = [given] if isinstance(given, (str, bytes, os.PathLike)) else list(given)
        if shell:
            args = ["/bin/sh", "-c", *args]
        sys.audit("subprocess.Popen", args[0], args, cwd, env)
        spec = self._spec
        spec["command"] = [_text(arg) for arg in args]
        spec["cwd"] = os.path.abspath(_text(cwd)) if cwd is not None else os.getcwd()
        spec["env"] = {_text(key): _text(value) for key, value in (os.environ if env is None else env).items()}
        if uid is not None or gid is not None:
            spec["user"] = f"{os.getuid() if uid is None else uid}" + ("" if gid is None else f":{gid}")
        merged = errwrite != -1 and errwrite == c2pwrite
        if merged:
            spec["stderr"] = "merged"
        connection = serve()
        self._job: Job = Streams(p2cread, c2pwrite, None if merged else errwrite).submit(connection, spec)
        try:
            self._job.started.wait()
        except BaseException:
            self._job.kill()
            raise
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]
        self._check_started(_text(args[0]))
        self.pid = self._job.pid or 0
        self._child_created = True

    def _check_started(self, program: str) -> None:
        job = self._job
        if job.error is not None:
            raise job.error
        if job.pid is not None or job.report is None:
            return
        message = job.report["error"] or job.report["reason"]
        self.report = job.report
        if job.report["exit_code"] == 127:
            raise FileNotFoundError(2, message, program)
        if job.report["exit_code"] == 126:
            raise PermissionError(13, message, program)
        raise OSError(message)

    def _internal_poll(self, _deadstate: Optional[int] = None, *_: Any) -> Optional[int]:
        if self.returncode is None and "_job" in self.__dict__ and self._job.ended.is_set():
            if _deadstate is not None and self._job.error is not None:
                return _deadstate  # The constructor of another Popen polls this abandoned one, and must not fail.
            self._finish()
        return self.returncode

    def _wait(self, timeout: Optional[float]) -> int:
        if self.returncode is None:
            if not self._job.ended.wait(timeout):
                raise TimeoutExpired(self.args, timeout or 0)
            self._finish()
        return self.returncode

    def _finish(self) -> None:
        if self._job.error is not None:
            self.returncode = 125
            raise self._job.error
        self.report = self._job.report
        returncode = self._job.returncode
        self.returncode = 125 if returncode is None else returncode

    def wait(self, timeout: Optional[float] = None) -> int:
        """Waits until no process of the job is left.

        Raises `TimeoutExpired` after `timeout` seconds, and leaves the job running.
        """
        return super().wait(check_seconds("timeout", timeout))

    def communicate(self, input: Any = None, timeout: Optional[float] = None) -> tuple[Any, Any]:
        """Like `communicate` of subprocess. After `timeout` seconds, raises `TimeoutExpired`. The job continues."""
        try:
            return super().communicate(input, check_seconds("timeout", timeout))
        except subprocess.TimeoutExpired as error:
            raise TimeoutExpired(error.cmd, error.timeout, error.output, error.stderr) from None

    def send_signal(self, sig: int) -> None:
        """Sends a signal to the main process, unless the job has ended."""
        if not 1 <= sig <= signal.SIGRTMAX:
            raise ValueError(f"{sig} is no signal")
        if self.poll() is None:
            self._job.signal(int(sig))

    def terminate(self) -> None:
        """Stops all processes of the job: SIGTERM, and SIGKILL after the grace period. Does not wait."""
        if self.poll() is None:
            self._job.stop()

    def kill(self) -> None:
        """Kills all processes of the job. Does not wait."""
        if self.poll() is None:
            self._job.kill()


def _text(value: Any) -> str:
    text = os.fsdecode(value)
    if "\0" in text:
        raise ValueError("embedded null byte")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{value!r} is not UTF-8: pinfold serve cannot receive it") from None
    return text

