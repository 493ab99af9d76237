"""The arrangement of folders that everything else relies on."""

import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_platform_folder_is_not_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert [path.name for path in (ROOT / "platform").iterdir() if (path / "__init__.py").exists()] == ["penstock"]


def test_the_standard_librarys_platform_is_what_is_imported() -> None:
    stdlib = Path(sysconfig.get_path("stdlib")).resolve()
    assert Path(platform.__file__).resolve() == stdlib / "platform.py"


def test_it_is_also_imported_by_a_fresh_interpreter_in_the_checkout() -> None:
    code = "import platform, sys; sys.exit(0 if platform.machine() else 1)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_no_file_of_the_project_is_too_long_to_read() -> None:
    """500 lines is the hard stop; migrations and tests are left out."""
    folders = ("platform", "tenants", "capacity", "serving", "worker")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if "migrations" not in path.parts]
    too_long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 500}
    assert not too_long
