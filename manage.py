#!/usr/bin/env python
"""Django's command line, from a checkout: ``python manage.py <command>``."""

import sys
from pathlib import Path

# The project package lives in platform/; an installed or editable copy finds it without this.
sys.path.insert(1, str(Path(__file__).resolve().parent / "platform"))

from penstock.cli import manage

if __name__ == "__main__":
    sys.exit(manage(sys.argv[1:], program="manage.py"))
