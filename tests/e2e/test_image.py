"""``deploy/Dockerfile`` as far as that can be shown without a container: its own commands, run in a fresh folder."""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.containers import DEPLOY, Image, instructions
from tests.e2e.stack import ROOT

UV = shutil.which("uv") or shutil.which("uv", path=str(ROOT / ".tools" / "uv" / "bin"))
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(UV is None, reason="no uv: ./penstock --print-uv brings one"),
]


def ignored() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def left_out(folder: str, names: list[str]) -> set[str]:
    """What ``docker build`` does not send of a folder: patterns are of whole paths, ``**/`` of those at any depth."""
    paths = {name: (Path(folder) / name).relative_to(ROOT).as_posix() for name in names}
    return {
        name
        for name, path in paths.items()
        for pattern in ignored()
        if fnmatch.fnmatch(name if pattern.startswith("**/") else path, pattern.removeprefix("**/"))
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``WORKDIR`` when the image is built: what is copied there, and each command that runs there."""
    bare = tmp_path_factory.mktemp("image")
    work, programs = bare / "penstock", bare / "bin"
    programs.mkdir()
    # A slim image has no Python but its own, and uv is what the command before put there.
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    (programs / "python").symlink_to(python)
    assert UV is not None
    (programs / "uv").symlink_to(Path(UV).resolve())
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "VIRTUAL_ENV"))}
    kept |= {"PATH": f"{programs}:/usr/bin:/bin", "UV_PYTHON": str(python), "UV_PROJECT_ENVIRONMENT": ".venv"}
    steps = instructions((DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    for name, rest in steps[[name for name, _ in steps].index("WORKDIR") + 1 :]:
        if name == "COPY":
            source, _, target = rest.partition(" ")
            assert target == "."
            shutil.copytree(ROOT / source, work, ignore=left_out)
            for path in work.rglob("*"):
                path.chmod(path.stat().st_mode & 0o700)  # as in a checkout that was made under umask 077
        elif name == "RUN":
            # The machine's cache may be used: the same files come faster.
            command = ["/bin/sh", "-ec", rest.replace(" --no-cache", "")]
            done = subprocess.run(command, cwd=work, env=kept, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
    yield work
    shutil.rmtree(bare)


def test_the_folder_of_the_image_holds_no_secret_and_nothing_of_this_machine() -> None:
    names = [".git", ".venv", ".data", ".tools", "penstock", "pyproject.toml", "uv.lock", "README.md", "LICENSE"]
    kept = {"penstock", "pyproject.toml", "uv.lock", "README.md", "LICENSE"}
    assert set(names) - left_out(str(ROOT), names) == kept
    of_deploy = [".env", "compose.env", "tls", "compose.yaml"]
    assert set(of_deploy) - left_out(str(DEPLOY), of_deploy) == {"compose.yaml"}


def test_its_commands_make_what_its_entrypoint_runs(built: Path) -> None:
    image = Image.read()
    found = image.environment["PATH"].replace("/opt/penstock", str(built)).replace("$PATH", "/usr/bin:/bin")
    environment = {"PATH": found, "PENSTOCK_DATA": str(built.parent / "data"), "HOME": str(built.parent)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        program = shutil.which(image.entrypoint[0], path=found)
        assert program == str(built / ".venv" / "bin" / image.entrypoint[0]), "not the launcher, which installs again"
        command = [program, *image.entrypoint[1:], *words]
        return subprocess.run(command, cwd=built, env=environment, capture_output=True, text=True, timeout=60)

    assert run("version").stdout.startswith("penstock ")
    settings = run("help", "settings")
    assert settings.stdout == (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    refused = run(*image.command)
    assert refused.returncode == 2, refused.stderr
    assert "is not set up" in refused.stderr
    # The development tools are not in it.
    assert not list(built.glob(".venv/lib/python*/site-packages/pytest"))


def test_nothing_has_to_be_compiled_or_opened_by_its_owner_alone(built: Path) -> None:
    assert built.is_dir()
    packages = ("platform/penstock", "tenants", "capacity", "serving", "worker", ".venv/lib")
    sources = [path for package in packages for path in (built / package).rglob("*.py")]
    assert len(sources) > 1000
    bare = [path for path in sources if not Path(importlib.util.cache_from_source(str(path))).exists()]
    # Templates of whole projects, which are no modules.
    assert [path for path in bare if ".venv" not in path.parts] == []
    assert len(bare) < len(sources) / 100
    closed = [path for path in built.rglob("*") if not path.is_symlink() and not path.stat().st_mode & 0o004]
    assert closed == []
