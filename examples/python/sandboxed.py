"""Runs Python code that you do not trust: each piece is a job of one `pinfold serve`, in a sandbox (docs/serve.md).

    for result in run_all(["print(6 * 7)", "import socket; socket.socket()"], timeout=10):
        print(result["code"], result["stdout"], result["report"]["reason"])

Each job may read what `read` names and the system's files, and write what `write` names. It has no network and sees no
environment variables but PATH, HOME and the like. When this program ends, in any way, the jobs end too.

    python3 sandboxed.py CODE...            prints one line of JSON for each piece of code
"""

import json
import os
import subprocess
import sys


class Refused(Exception):
    """pinfold started nothing: the sandbox or a limit can't be enforced here. The message says what to do."""


def run_all(codes, read=(), write=(), timeout=10.0, workers=2, limits=None, pinfold="pinfold"):
    """Yields a dict for each piece of code as soon as nothing of its job is left: code, stdout, stderr and report."""
    sandbox = {"read": list(read), "write": list(write)}
    jobs = {str(number): code for number, code in enumerate(codes)}
    results = {name: {"code": code, "stdout": "", "stderr": ""} for name, code in jobs.items()}
    # The interpreter of the system: one in a home directory would have to be granted with `read`.
    python = "/usr/bin/python3"
    with subprocess.Popen(
        [pinfold, "serve", "--stdio", "-j", str(workers)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        for name, code in jobs.items():
            # -I: the code can't make Python load modules from its directory or from the environment.
            job = {"command": [python, "-I", "-c", code], "sandbox": sandbox, "timeout": timeout, "limits": limits or {}}
            process.stdin.write(json.dumps({"op": "submit", "id": name, "job": job}) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "output":
                results[event["id"]][event["stream"]] += event["line"] + "\n" * event["complete"]
            elif event["event"] == "error":
                raise Refused(event["message"])
            elif event["event"] == "done":
                yield {**results.pop(event["id"]), "report": event["report"]}
                if not results:
                    break


if __name__ == "__main__":
    for done in run_all(sys.argv[1:], timeout=1.0, pinfold=os.environ.get("PINFOLD", "pinfold")):
        done["report"] = {key: done["report"][key] for key in ("reason", "exit_code")}
        print(json.dumps(done), flush=True)
