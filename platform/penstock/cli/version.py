"""``penstock version``."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version


def penstock_version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return "0 (not installed)"


def run(arguments: argparse.Namespace) -> int:
    print(f"penstock {penstock_version()} (Python {platform.python_version()}, Django {version('django')})")
    return 0
