"""The launcher, run by dash (or sh) on checkouts with scripted programs in place of Python's packages and uv."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHELL = shutil.which("dash") or shutil.which("sh") or "/bin/sh"
TOOLS = ("sh", "cat", "cksum", "tr", "awk", "dirname", "readlink", "mkdir", "chmod", "ln")

# A stand-in for uv: notes how it is called, and makes the "environment" whose Python notes how it is called.
UV = """#!/bin/sh
if [ "$1" = --version ]; then echo "uv ${UV_FAKE_VERSION:-0.9.1} (fake)"; exit 0; fi
sources="index=${UV_DEFAULT_INDEX:-} more=${UV_INDEX:-} certificates=${SSL_CERT_FILE:-}"
echo "uv $* | python=$UV_PYTHON downloads=$UV_PYTHON_DOWNLOADS $sources" >>"$NOTES"
case "$1" in ${UV_FAKE_FAILS:-none}) exit 1 ;; esac
mkdir -p "$UV_PROJECT_ENVIRONMENT/bin"
cat >"$UV_PROJECT_ENVIRONMENT/bin/python" <<'END'
#!/bin/sh
echo "run $*" >>"$NOTES"
END
chmod +x "$UV_PROJECT_ENVIRONMENT/bin/python"
"""

# A stand-in for Python: the version test passes, pip "installs" the fake uv into its target.
PYTHON = """#!/bin/sh
case "$*" in
*version_info*) exit ${PYTHON_FAKE_OLD:-0} ;;
*sys.executable*) echo "$0" ;;
"-m pip --version") exit ${PIP_FAKE_MISSING:-0} ;;
"-m pip config list") printf '%s\n' "${PIP_FAKE_CONFIG:-}" ;;
"-m pip install"*)
    echo "pip $*" >>"$NOTES"
    while [ "$1" != --target ]; do shift; done
    mkdir -p "$2/bin" && cat "$FAKES/uv.hidden" >"$2/bin/uv" && chmod +x "$2/bin/uv" ;;
"-m venv"*)
    [ "${VENV_FAKE_MISSING:-0}" = 0 ] || exit 1
    mkdir -p "$3/bin"
    cat >"$3/bin/python" <<'END'
#!/bin/sh
echo "venv pip $*" >>"$NOTES"
cat "$FAKES/uv.hidden" >"${0%/python}/uv" && chmod +x "${0%/python}/uv"
END
    chmod +x "$3/bin/python" ;;
esac
"""


class Checkout:
    """A folder with the launcher, and a PATH of nothing but the fakes and the POSIX tools it may use."""

    def __init__(self, folder: Path, *, uv: bool) -> None:
        self.root, self.bin = folder / "a checkout", folder / "bin"
        self.root.mkdir()
        self.bin.mkdir()
        shutil.copy(ROOT / "penstock", self.root)
        (self.root / "uv.lock").write_text("lock 1\n")
        (self.root / "pyproject.toml").write_text("project 1\n")
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
        self.program("python3", PYTHON)
        self.program("uv" if uv else "uv.hidden", UV)
        self.notes = folder / "notes"
        self.notes.write_text("")
        self.environment = {"PATH": str(self.bin), "NOTES": str(self.notes), "FAKES": str(self.bin)}

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(self, *arguments: str, launcher: Path | None = None, cwd: Path | None = None, **environment: str) -> str:
        """What was called, in order. Raises CalledProcessError."""
        self.notes.write_text("")
        subprocess.run(
            [SHELL, str(launcher or self.root / "penstock"), *arguments],
            cwd=cwd or self.root,
            env=self.environment | environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return self.notes.read_text()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path, uv=True)


@pytest.fixture
def bare(tmp_path: Path) -> Checkout:
    """A machine without uv."""
    return Checkout(tmp_path, uv=False)


def test_it_installs_the_locked_dependencies_and_starts_with_all_arguments(checkout: Checkout) -> None:
    sync, run = checkout.run("up", "--data", "two words").splitlines()
    assert sync.startswith(f"uv sync --project {checkout.root} --locked --inexact --compile-bytecode --no-dev")
    assert f"python={checkout.bin}/python3 downloads=never" in sync
    assert run == "run -P -m penstock up --data two words"


def test_a_second_start_installs_nothing(checkout: Checkout) -> None:
    checkout.run("up")
    assert checkout.run("up") == "run -P -m penstock up\n"


def test_a_new_lock_file_is_installed(checkout: Checkout) -> None:
    checkout.run("up")
    (checkout.root / "uv.lock").write_text("lock 2\n")
    assert "uv sync" in checkout.run("up")


def test_the_tests_get_the_development_tools_and_later_starts_keep_them(checkout: Checkout) -> None:
    checkout.run("up")
    assert "--locked --inexact --compile-bytecode --dev" in checkout.run("test", "-k", "x")
    assert "uv sync" not in checkout.run("up")
    (checkout.root / "uv.lock").write_text("lock 2\n")
    assert "--dev" in checkout.run("up")


def test_it_works_from_anywhere_and_through_links(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "first").symlink_to("../a checkout/penstock")
    (tmp_path / "elsewhere" / "second").symlink_to(tmp_path / "elsewhere" / "first")
    told = checkout.run("version", launcher=tmp_path / "elsewhere" / "second", cwd=Path("/"))
    assert f"--project {checkout.root} " in told


def test_it_works_by_name_on_the_path(checkout: Checkout, tmp_path: Path) -> None:
    (checkout.bin / "penstock").symlink_to(checkout.root / "penstock")
    checkout.notes.write_text("")
    subprocess.run(["penstock", "version"], cwd=tmp_path, env=checkout.environment, check=True, capture_output=True)
    assert checkout.notes.read_text().endswith("run -P -m penstock version\n")


def test_without_uv_pip_installs_it_into_a_private_folder(bare: Checkout) -> None:
    pip, sync, run = bare.run("up").splitlines()
    assert f"--target {bare.root}/.tools/uv" in pip
    assert sync.startswith("uv sync")
    assert run.startswith("run")
    (bare.root / "uv.lock").write_text("lock 2\n")
    assert "pip install" not in bare.run("up")


def test_without_pip_a_private_virtual_environment_has_it(bare: Checkout) -> None:
    told = bare.run("up", PIP_FAKE_MISSING="1")
    assert "venv pip -m pip install" in told
    assert "uv sync" in told


def test_an_uv_that_is_too_old_is_not_used(checkout: Checkout) -> None:
    checkout.program("uv.hidden", UV.replace("UV_FAKE_VERSION", "OTHER"))
    assert "--target" in checkout.run("up", UV_FAKE_VERSION="0.4.30")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PYTHON_FAKE_OLD": "1"}, "Python 3.11 or newer is needed"),
        ({"PIP_FAKE_MISSING": "1", "VENV_FAKE_MISSING": "1"}, "python3-pip"),
    ],
)
def test_what_is_missing_is_told_with_what_to_do(bare: Checkout, environment: dict[str, str], words: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        bare.run("up", **environment)
    assert words in caught.value.stderr
    assert caught.value.returncode == 1


def test_a_failed_installation_is_told_and_tried_again(checkout: Checkout) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        checkout.run("up", UV_FAKE_FAILS="sync")
    assert "could not be installed" in caught.value.stderr
    assert "run" not in checkout.notes.read_text()
    assert "uv sync" in checkout.run("up")


def test_a_mirror_in_pips_configuration_serves_the_locked_files_by_their_hashes(checkout: Checkout) -> None:
    configuration = "global.index-url='https://mirror.example/simple/'\nglobal.cert='/etc/own certificates.pem'"
    export, install, own, run = checkout.run(
        "up", PIP_FAKE_CONFIG=configuration, UV_PROJECT_ENVIRONMENT=".other"
    ).splitlines()[-4:]
    assert "uv export" in export
    assert "--require-hashes" in install
    assert "index=https://mirror.example/simple/" in install
    assert "certificates=/etc/own certificates.pem" in install
    assert f"--no-deps --editable {checkout.root}" in own
    assert run.startswith("run")
    assert (checkout.root / ".other" / "bin" / "python").exists()


def test_pypi_named_in_pips_configuration_is_no_mirror(checkout: Checkout) -> None:
    assert "uv sync" in checkout.run("up", PIP_FAKE_CONFIG=":env:.index-url='https://pypi.org/simple/'")


def test_where_pypi_does_not_answer_pips_other_sources_are_tried(checkout: Checkout) -> None:
    configuration = "global.extra-index-url='file:///one/simple\\nfile:///two/simple'"
    told = checkout.run("up", PIP_FAKE_CONFIG=configuration, UV_FAKE_FAILS="sync").splitlines()
    assert "uv sync" in told[0]
    assert "--require-hashes" in told[-3]
    assert "more=file:///one/simple file:///two/simple" in told[-3]
    assert told[-1].startswith("run")


def test_scripts_can_ask_which_uv_is_used(bare: Checkout) -> None:
    done = subprocess.run(
        [SHELL, str(bare.root / "penstock"), "--print-uv"],
        env=bare.environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{bare.root}/.tools/uv/bin/uv\n"


def test_the_real_command_starts_fast_without_django() -> None:
    code = "import sys, penstock.cli; penstock.cli.main(['help']); print('django' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.endswith("False\n")
