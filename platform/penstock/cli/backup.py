"""``penstock backup`` and ``penstock restore``."""

import argparse
import json
import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from penstock import env
from penstock.backup import BackupError, Manifest, make, read, restore
from penstock.databases import database_settings


def run(arguments: argparse.Namespace) -> int:
    data = arguments.data.expanduser().resolve()
    os.umask(0o077)
    try:
        if arguments.act == "backup":
            return _backup(arguments, data)
        return _restore(arguments, data)
    except BackupError as error:
        print(f"penstock {arguments.act}: {error}", file=sys.stderr)
        return 1


def _backup(arguments: argparse.Namespace, data: Path) -> int:
    target = arguments.output or Path(f"penstock-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar.gz")
    manifest = make(data, database_settings(env.text("DATABASE_URL"), data), target.expanduser())
    _tell(arguments, manifest, f"{target} holds {_what(manifest)}. It opens everything: keep it as you keep passwords.")
    return 0


def _restore(arguments: argparse.Namespace, data: Path) -> int:
    source = arguments.file.expanduser()
    if arguments.check:
        manifest = read(source)
        _tell(arguments, manifest, f"{source} holds {_what(manifest)}")
        return 0
    manifest = restore(source, data, database_settings(env.text("DATABASE_URL"), data), _known_migrations())
    then = f"penstock up --data {data}" if not env.text("DATABASE_URL") else f"penstock setup --data {data}"
    _tell(arguments, manifest, f"{data} has {_what(manifest)}. Go on with: {then}")
    return 0


def _what(manifest: Manifest) -> str:
    journals = sum(name.startswith("journal/") for name in manifest.files)
    secrets = "its secrets" if "secrets.json" in manifest.files else "no secrets (they come from the environment)"
    return (
        f"the {manifest.database} database of {manifest.made_at} (Penstock {manifest.version}), {secrets} "
        f"and {journals} journal segment{'' if journals == 1 else 's'}"
    )


def _tell(arguments: argparse.Namespace, manifest: Manifest, text: str) -> None:
    print(json.dumps(asdict(manifest), indent=2) if arguments.json else text)


def _known_migrations() -> list[str]:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "penstock.settings")
    import django  # a second that `backup` need not pay

    django.setup()
    from django.db.migrations.loader import MigrationLoader

    return [f"{app}.{name}" for app, name in MigrationLoader(None).disk_migrations]
