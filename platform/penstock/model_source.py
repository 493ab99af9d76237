"""What ``--model`` may name: a local folder of weights, or a model's id on a hub."""

from pathlib import Path


def local_folder(source: str) -> Path | None:
    """The folder that ``source`` names; None for a hub id. What looks like a path is one, whether it exists or not."""
    folder = Path(source).expanduser()
    return folder.resolve() if source.startswith((".", "/", "~")) or folder.is_dir() else None


def problem(source: str) -> str:
    """Why nothing could be served from ``source``, with what to do; empty when that cannot be told from here."""
    folder = local_folder(source)
    if folder is None:
        return ""
    if not folder.is_dir():
        return f"{folder} is not a folder: --model takes the folder of a model's weights, or a hub id such as org/name"
    if not (folder / "config.json").is_file():
        return (
            f"{folder} has no config.json: --model takes a folder in Hugging Face format, or a hub id such as org/name"
        )
    return ""
