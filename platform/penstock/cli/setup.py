"""``penstock setup``: what has to be done once, or after an upgrade, before the roles run. Safe to repeat."""

import argparse
import json
import os
import sys
from typing import Any

from penstock.secrets import ensure_secrets


def run(arguments: argparse.Namespace) -> int:
    data = arguments.data.expanduser().resolve()
    os.umask(0o077)
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    ensure_secrets(data)
    os.environ["PENSTOCK_DATA"] = str(data)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "penstock.settings")
    import django  # the settings need the data folder's secrets first

    django.setup()
    from penstock.first_run import SetupError, prepare

    try:
        outcome = prepare(
            demo_engine=arguments.engine if arguments.demo else None,
            model=arguments.model,
            is_host=not arguments.no_host,
        )
    except SetupError as error:
        print(f"penstock setup: {error}", file=sys.stderr)
        return 1
    print(json.dumps(outcome) if arguments.json else "\n".join(describe(outcome)))
    return 0


def describe(outcome: dict[str, Any]) -> list[str]:
    """The outcome for a person."""
    lines = [f"database   {outcome['migrations']} migrations applied"]
    if outcome["host"]:
        lines.append(f"host       {outcome['host']} is enrolled")
    for tenant in outcome["tenants"]:
        lines.append(f"tenant     {tenant['slug']}: API key {tenant['api_key']} (shown once)")
    if outcome["sign_in_url"]:
        lines.append(f"sign in    {outcome['sign_in_url']} (once)")
    return lines
