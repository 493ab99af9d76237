"""``docs/settings.md`` names every variable that the code reads, and nothing else."""

import ast
import re
from pathlib import Path

from serving.gateway.config import _TUNABLE

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
NAME = re.compile(r"(?:PENSTOCK_[A-Z][A-Z_]*[A-Z]|DATABASE_URL|REDIS_URL|NO_COLOR|FORCE_COLOR)")
NOT_VARIABLES = {"PENSTOCK_WEB_HOST", "PENSTOCK_WEB_PORT"}
"""Names of Django settings, made from other variables."""


def read_by_the_code() -> set[str]:
    """Each string in the code that names a variable, and what the launcher asks for; families count as one."""
    found = set()
    for folder in ("platform", "tenants", "capacity", "serving", "worker"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
                    found.add(node.value)
    found.update(re.findall(r"\$\{?(PENSTOCK_[A-Z_]+)", (ROOT / "penstock").read_text(encoding="utf-8")))
    limits = {f"PENSTOCK_GATEWAY_{name.upper()}" for name in _TUNABLE} | {"PENSTOCK_GATEWAY_"}
    return {name for name in found - NOT_VARIABLES - limits if not name.startswith("PENSTOCK_TEST_")}


def test_the_walk_sees_what_is_known_to_be_read() -> None:
    assert {"PENSTOCK_DATA", "REDIS_URL", "PENSTOCK_PYTHON", "PENSTOCK_TRUSTED_PROXIES"} <= read_by_the_code()


def test_every_variable_is_on_the_page() -> None:
    assert read_by_the_code() - set(NAME.findall(PAGE)) == set()


def test_every_limit_of_a_gateway_is_on_the_page() -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| `PENSTOCK_GATEWAY_<NAME>`")]
    named = {name.lower() for name in re.findall(r"`([A-Z_]+)`", row)}
    assert named == set(_TUNABLE)


def test_nothing_on_the_page_is_made_up() -> None:
    assert set(NAME.findall(PAGE)) - {"PENSTOCK_GATEWAY", "PENSTOCK_TEST"} - read_by_the_code() == set()
