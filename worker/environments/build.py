"""Build one engine environment: ``python -m worker.environments.build --root DIR --name vllm-cpu``.

A process of its own, so that a build outlives an agent restart. It holds the environment's lock: of several builders,
in one or many agents that share a root, one works and the others wait for its result. A folder without the finished
marker is rebuilt from nothing. Exit code 0: the environment is ready; 1: the reason is in ``.status.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from worker import environments as env
from worker.environments.pip_output import INSTALL_SHARE, PipProgress, explain_failure, missing_requirement
from worker.files import write_atomic
from worker.spec import Progress

NICE = 10
VERIFY_LIMIT_S = 600.0
"""Importing torch and vLLM took 37 s on a crowded machine; what takes this long does not end."""
ELSEWHERE = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PIP_DRY_RUN")
"""pip's settings by which packages would land anywhere but in the environment."""
Tell = Callable[[Progress], None]


def preflight(recipe: env.Recipe, *, free_bytes: int, machine: str, glibc: str, python: tuple[int, int]) -> None:
    """Refuse what cannot work before minutes are spent on it. Raises BuildError with what to do."""
    if machine not in recipe.machines:
        raise env.BuildError(f"{recipe.name} exists for {', '.join(recipe.machines)}, this host is {machine}.")
    if python < recipe.minimum_python:
        wanted = ".".join(map(str, recipe.minimum_python))
        raise env.BuildError(f"{recipe.name} needs Python {wanted} or newer, this is {python[0]}.{python[1]}.")
    found = tuple(int(part) for part in glibc.split(".")[:2] if part.isdigit())
    if len(found) == 2 and found < recipe.minimum_glibc:
        wanted = ".".join(map(str, recipe.minimum_glibc))
        raise env.BuildError(f"{recipe.name} needs glibc {wanted} or newer, this host has {glibc}.")
    if free_bytes < recipe.minimum_free_bytes:
        need, have = recipe.minimum_free_bytes / 1e9, free_bytes / 1e9
        raise env.BuildError(
            f"{recipe.name} needs {need:.1f} GB of free disk, {have:.1f} GB are left: free some, "
            "or put environments elsewhere with PENSTOCK_ENVIRONMENTS_DIR."
        )


def pip_command(
    environment: Path, *, has_ensurepip: bool, system_pip: str | None, below: Path | None = None
) -> list[str]:
    """Return how pip is called for ``environment``. Raises BuildError when the host has no pip to use.

    ``below`` is an environment whose pip serves for this one, too. Debian ships ``ensurepip`` in a package of its own;
    its pip can still install into an environment from outside.
    """
    python = str(env.interpreter(environment))
    if below is not None:
        return [str(env.interpreter(below)), "-m", "pip", "--python", python]
    if has_ensurepip:
        return [python, "-m", "pip"]
    if system_pip:
        return [system_pip, "--python", python]
    raise env.BuildError("Python has neither ensurepip nor pip: install python3-venv (or python3-pip).")


def install_command(pip: list[str], recipe: env.Recipe, requirements: Path, *, extra_index: str = "") -> list[str]:
    """Return pip's command line: the user's own configuration decides where packages come from."""
    command = [*pip, "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command += ["--no-deps"] if recipe.no_deps else []
    command += ["--extra-index-url", extra_index] if extra_index else []
    return [*command, "-r", str(requirements)]


def child_environment() -> dict[str, str]:
    """pip's own configuration counts, except for where it would install to; the agent's Python settings do not."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", *ELSEWHERE)
    # Set, not dropped: a configuration file may say user = true, which pip refuses in an environment.
    return {k: v for k, v in os.environ.items() if k not in dropped} | {"PIP_USER": "0"}


def run_pip(
    command: list[str], log_path: Path, site_packages: Path, expected: int, tell: Tell, *, keep: int
) -> tuple[int, str]:
    """Run pip with its output in the log, tell its progress, and return its exit code and output.

    It inherits ``keep``, the environment's lock: where the builder alone is killed, nobody else builds beside pip.
    """
    parser = PipProgress(expected)
    output, rest, looked_at = "", "", 0.0
    with log_path.open("ab") as log, log_path.open("rb") as reader:
        log.write(f"$ {' '.join(command)}\n".encode())
        log.flush()
        reader.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=child_environment(), pass_fds=(keep,)
        )
        while True:
            code = process.poll()
            chunk = reader.read().decode("utf-8", "replace")
            output += chunk
            *complete, rest = (rest + chunk).split("\n")
            for line in complete:
                if told := parser.feed(line):
                    tell(told)
            if parser.is_installing and time.monotonic() - looked_at > 1.0:
                looked_at = time.monotonic()
                tell(parser.installed(sum(1 for _ in site_packages.glob("*.dist-info"))))
            if code is not None:
                return code, output + reader.read().decode("utf-8", "replace")
            time.sleep(0.2)


def write_aliases(recipe: env.Recipe, site_packages: Path) -> None:
    """Add metadata-only distributions: vllm-cpu provides the module ``vllm`` but not the distribution of that name,
    for which vLLM asks at start."""
    for alias, provider in recipe.aliases.items():
        found = sorted(site_packages.glob(f"{provider.replace('-', '_')}-*.dist-info"))
        if not found:
            raise env.BuildError(f"pip installed no {provider}: check pip's configuration for another target.")
        version = found[-1].name.removesuffix(".dist-info").rsplit("-", 1)[1]
        version = version if "+" in version else f"{version}+cpu"
        folder = site_packages / f"{alias}-{version}.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {alias}\nVersion: {version}\n")
        (folder / "INSTALLER").write_text("penstock\n")
        (folder / "RECORD").write_text("")


def apply_patches(recipe: env.Recipe, site_packages: Path) -> None:
    """Change what was installed as the recipe says. Raises BuildError where a file is not as the recipe knows it."""
    for patch in recipe.patches or ():
        path = site_packages / patch.file
        text = path.read_text() if path.is_file() else ""
        if text.count(patch.after) != 1:
            raise env.BuildError(f"pip installed another {patch.file} than expected: check its configured sources.")
        path.write_text(text.replace(patch.after, patch.after + patch.text))


def lie_upon(environment: Path, base: Path, site_packages: Path) -> None:
    """Bring in the packages of the environment below. Its own come first.

    Nothing says where the two are, only how they lie beside each other: their folder can be moved.
    """
    (environment / env.BASE_LINK).symlink_to(Path("..") / base.name)
    within = site_packages.relative_to(environment)
    # Python joins what a .pth file says with the folder that it is in.
    upwards = Path(*[".."] * len(within.parts))
    (site_packages / "penstock-base.pth").write_text(f"{upwards / env.BASE_LINK / within}\n")


def build(environment: Path, recipe: env.Recipe, tell: Tell, *, keep: int) -> None:
    """Build ``environment`` from nothing. Children inherit ``keep``, the lock. Raises BuildError."""
    started = time.time()
    log_path = env.sibling(environment, ".log")
    log_path.write_text("")
    free_bytes = shutil.disk_usage(environment.parent).free
    glibc = platform.libc_ver()[1]
    preflight(recipe, free_bytes=free_bytes, machine=platform.machine(), glibc=glibc, python=sys.version_info[:2])
    tell(Progress(step="create environment", share=0.0))
    if environment.exists():
        shutil.rmtree(environment)
    has_ensurepip = bool(sysconfig.get_path("stdlib")) and (Path(sysconfig.get_path("stdlib")) / "ensurepip").is_dir()
    base = env.base_path(environment.parent, recipe)
    below = base if base is not None and any(base.glob("lib/python3.*/site-packages/pip")) else None
    system_pip = shutil.which("pip3") or shutil.which("pip")
    pip = pip_command(environment, has_ensurepip=has_ensurepip, system_pip=system_pip, below=below)
    is_bare = below is not None or not has_ensurepip
    venv = [sys.executable, "-m", "venv", *(["--without-pip"] if is_bare else []), str(environment)]
    made = subprocess.run(venv, capture_output=True, text=True, env=child_environment(), check=False, pass_fds=(keep,))
    if made.returncode:
        raise env.BuildError(f"python -m venv failed: {(made.stderr or made.stdout).strip()[-300:]}")
    site_packages = next((environment / "lib").glob("python3.*")) / "site-packages"
    install(pip, recipe, log_path, site_packages, tell, keep=keep)
    write_aliases(recipe, site_packages)
    apply_patches(recipe, site_packages)
    if base is not None:
        lie_upon(environment, base, site_packages)
    tell(Progress(step="check environment", share=INSTALL_SHARE))
    verify(environment, recipe)
    ready = env.Ready(name=recipe.name, built_at=time.time(), build_s=round(time.time() - started, 1))
    write_atomic(environment / env.READY_MARKER, msgspec.json.encode(ready))


def install(pip: list[str], recipe: env.Recipe, log_path: Path, site_packages: Path, tell: Tell, *, keep: int) -> None:
    """Install from the configured sources; PyTorch's own index only when they have no torch. Raises BuildError.

    An unreachable index costs pip minutes of retries, so it is not asked before it is needed.
    """
    requirements = env.requirements_path(recipe)
    expected = len(env.requirement_lines(requirements.read_text())) if recipe.no_deps else 0
    command = install_command(pip, recipe, requirements)
    code, output = run_pip(command, log_path, site_packages, expected, tell, keep=keep)
    if code and recipe.torch_index and missing_requirement(output).startswith("torch=="):
        command = install_command(pip, recipe, requirements, extra_index=recipe.torch_index)
        code, output = run_pip(command, log_path, site_packages, expected, tell, keep=keep)
    if code:
        raise env.BuildError(f"{explain_failure(output)} pip's output is in {log_path}.")


def verify(environment: Path, recipe: env.Recipe) -> None:
    """Import what the engine needs, in the environment itself. Raises BuildError."""
    try:
        checked = subprocess.run(
            [str(env.interpreter(environment)), "-c", recipe.verify],
            capture_output=True, text=True, env=child_environment(), check=False, cwd=environment,
            timeout=VERIFY_LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise env.BuildError(
            f"The environment was installed, but its engine could not be imported within {VERIFY_LIMIT_S:.0f} s: "
            "free the host's processor or disk and retry."
        ) from error
    if checked.returncode:
        last = (checked.stderr.strip().splitlines() or ["no output"])[-1]
        raise env.BuildError(f"The environment was installed but does not work: {last[:300]}")


@contextlib.contextmanager
def locked(path: Path, tell: Tell) -> Iterator[int]:
    """Hold the environment's lock and give its descriptor; it falls with the last process that has inherited it."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(Progress(step="wait for another build of this environment"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def obtain(root: Path, name: str, follow: Tell) -> str:
    """Build the environment called ``name``, and first the one it lies upon, unless they are ready.

    ``follow`` is told the progress, beside the environment's own status file. Returns why it failed, or nothing.
    """
    environment, recipe = env.environment_path(root, name), env.get_recipe(name)
    status_path = env.sibling(environment, ".status.json")

    def write(progress: Progress, error: str = "") -> None:
        status = env.BuildStatus(pid=os.getpid(), progress=progress, error=error)
        write_atomic(status_path, msgspec.json.encode(status))

    def tell(progress: Progress) -> None:
        write(progress)
        follow(progress)

    def wait(progress: Progress) -> None:
        """While another builder works, the status file is its own."""
        follow(progress)
        if env.read_status(environment) is None:
            write(progress)

    with locked(env.sibling(environment, ".lock"), wait) as lock:
        if env.is_ready(environment):
            return ""
        error = obtain(root, recipe.base, tell) if isinstance(recipe.base, str) else ""
        try:
            if not error:
                build(environment, recipe, tell, keep=lock)
        except env.BuildError as failure:
            error = str(failure)
        except OSError as failure:
            error = f"The environment cannot be written: {failure}"
        write(Progress(step="failed") if error else Progress(step="ready", share=1.0), error=error)
        return error


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.environments.build", description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--name", required=True, choices=sorted(env.RECIPES))
    chosen = parser.parse_args(arguments)
    os.nice(NICE)
    chosen.root.mkdir(parents=True, exist_ok=True)
    return 1 if obtain(chosen.root.resolve(), chosen.name, lambda _: None) else 0


if __name__ == "__main__":
    sys.exit(main())
