"""Looks at a model's files where this process can see them, so that a runtime can be chosen for it."""

from __future__ import annotations

import os
from pathlib import Path

from capacity.models import Model
from serving.policy.runtime import DESCRIPTIONS, Artifact, Choice, choose

_MOST_NAMES = 2000
_MOST_BYTES = 1 << 20
"""Of one description. What is longer describes no model that anybody serves."""


def runtime_choice(model: Model) -> Choice:
    """The runtime that fits ``model``, by what can be seen of it from here. Asks no network."""
    return choose(look_at(model.artifact_kind, model.artifact_value))


def look_at(kind: str, value: str) -> Artifact:
    """What can be seen of an artifact: of a folder its files two levels deep, of others their kind. Never raises."""
    if kind == Model.Artifact.HUB:
        return Artifact(kind, value, unseen="Its files are on a hub that is asked only by its host")
    if kind != Model.Artifact.PATH:
        return Artifact(kind, value)
    folder = Path(value)
    try:
        if not folder.is_absolute() or not folder.is_dir():
            return Artifact(kind, value, unseen="Its folder is on no disk of the control plane")
        names = _listed(folder)
        return Artifact(kind, value, names, {name: _read(folder / name) for name in DESCRIPTIONS if name in names})
    except (OSError, ValueError):
        return Artifact(kind, value, unseen="Its folder cannot be read by the control plane")


def _listed(folder: Path) -> frozenset[str]:
    found: set[str] = set()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            found.update(f"{entry.name}/{name}" for name in sorted(os.listdir(entry))[:_MOST_NAMES])
        else:
            found.add(entry.name)
        if len(found) >= _MOST_NAMES:
            break
    return frozenset(found)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST_BYTES).decode("utf-8", "replace")
