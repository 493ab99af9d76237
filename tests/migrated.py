"""A SQLite database with all migrations applied: made once in a run of ``penstock test``, for all of its processes."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from penstock.testing import TEMPLATES

ROOT = Path(__file__).resolve().parents[1]
NAME = "penstock.sqlite3"


def migrated(target: Path) -> bool:
    """Copy it to ``target``, which is not there yet. False, and nothing done, where a run has no folder for it.

    Whoever finds none migrates by themselves, as an installation does. Raises CalledProcessError when a migration
    fails.
    """
    folder = os.environ.get(TEMPLATES)
    if not folder:
        return False
    template = Path(folder) / NAME
    with (Path(folder) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            _migrate(Path(folder), template)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copyfile(template, target)
    target.chmod(0o600)
    return True


def _migrate(folder: Path, template: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    with tempfile.TemporaryDirectory(dir=folder) as made:
        subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), "migrate", "--verbosity", "0"],
            cwd=ROOT,
            env=kept | {"PENSTOCK_DATA": made, "PENSTOCK_SECRET_KEY": "only-to-migrate"},
            check=True,
        )
        (Path(made) / NAME).replace(template)
