"""Three programs as people write them, for the standard library. Tests and `compare` change their imports only."""

from __future__ import annotations

import os

NAMES = ("executor", "process", "event")


def source(name: str, package: str) -> str:
    """Returns the source of a program: that of the standard library, or with imports from `pinfold`."""
    with open(os.path.join(os.path.dirname(__file__), f"{name}.py")) as file:
        text = file.read()
    if package == "pinfold":
        for module in ("concurrent.futures", "multiprocessing"):
            text = text.replace(f"from {module} import", "from pinfold import")
    return text
