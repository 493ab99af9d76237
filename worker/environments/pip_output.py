"""Reading pip's output: how far an installation is, and why it failed. Pure."""

from __future__ import annotations

import re

from worker.spec import Progress

COLLECT_SHARE = 0.55
"""Share of a build that ends when all packages are collected; measured on a warm and a cold cache alike within 0.1."""
INSTALL_SHARE = 0.92

_COLLECTING = re.compile(r"^(?:Collecting|Requirement already satisfied:) (?P<what>[^\s(]+)")
_DOWNLOADING = re.compile(r"^\s+(?:Downloading|Using cached) (?P<file>\S+?)(?:\s+\((?P<size>[^)]+)\))?$")
_NO_MATCH = re.compile(r"No matching distribution found for (?P<what>\S+)")


class PipProgress:
    """Turns pip's lines into a Progress. ``expected`` is the number of packages; 0 when pip resolves them itself."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.collected = 0
        self.is_installing = False

    def feed(self, line: str) -> Progress | None:
        """Take one line of output; return the new progress, or None when the line says nothing."""
        if found := _COLLECTING.match(line):
            self.collected += 1
            return Progress(step="collect packages", share=self._collect_share(), detail=found["what"])
        if found := _DOWNLOADING.match(line):
            size = f" ({found['size']})" if found["size"] else ""
            name = found["file"].rsplit("/", 1)[-1].split("-", 1)[0]
            return Progress(step="download packages", share=self._collect_share(), detail=f"{name}{size}")
        if line.startswith("Installing collected packages"):
            self.is_installing = True
            return Progress(step="install packages", share=COLLECT_SHARE)
        return None

    def installed(self, count: int) -> Progress:
        """Progress of the installation proper, by the number of packages found in the environment."""
        expected = self.expected or max(self.collected, 1)
        share = COLLECT_SHARE + (INSTALL_SHARE - COLLECT_SHARE) * min(1.0, count / expected)
        return Progress(step="install packages", share=round(share, 3), detail=f"{min(count, expected)} of {expected}")

    def _collect_share(self) -> float | None:
        if not self.expected:
            return None
        return round(0.02 + (COLLECT_SHARE - 0.02) * min(1.0, self.collected / self.expected), 3)


def missing_requirement(output: str) -> str:
    """Return the requirement that pip found nowhere, or an empty string."""
    found = _NO_MATCH.search(output)
    return found["what"] if found else ""


def explain_failure(output: str) -> str:
    """Say in one sentence why pip failed and what to do."""
    lowered = output.lower()
    if "no space left on device" in lowered:
        return "The disk is full: free space, or put environments elsewhere with PENSTOCK_ENVIRONMENTS_DIR."
    if "permission denied" in lowered:
        return "pip may not write here: check the owner of the environments folder."
    if any(
        sign in lowered
        for sign in (
            "temporary failure in name resolution",
            "connection refused",
            "timed out",
            "network is unreachable",
            "newconnectionerror",
            "max retries exceeded",
        )
    ):
        return "A package index cannot be reached: check the network, the proxy, or pip's index-url and find-links."
    if what := missing_requirement(output):
        return f"No configured package source has {what} for this Python and machine: add one to pip's configuration."
    if "hashes" in lowered and "do not match" in lowered:
        return "A downloaded package does not match its hash: try again, or clear pip's cache (pip cache purge)."
    errors = [line.strip() for line in output.splitlines() if line.lower().startswith("error:")]
    return errors[-1][:300] if errors else "pip failed without a word of its own."
