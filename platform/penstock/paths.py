"""Where things are: assets beside the code, data never."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent.parent
IS_CHECKOUT = (_CHECKOUT / "manage.py").is_file() and (_CHECKOUT / "pyproject.toml").is_file()
ASSETS = _CHECKOUT if IS_CHECKOUT else _PACKAGE
TEMPLATES, STATIC = ASSETS / "templates", ASSETS / "static"


def default_data() -> Path:
    """The data folder when none is named: ``.data`` of a checkout, else the user's own data folder."""
    return ASSETS / ".data" if IS_CHECKOUT else Path.home() / ".local" / "share" / "penstock"
