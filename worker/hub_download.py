"""Download a model from the hub: ``python hub_download.py REPO REVISION RESULT``.

Run by an engine environment's interpreter with its own ``huggingface_hub``, so it imports nothing of Penstock. Progress
goes to standard output as JSON lines ``{"done": bytes, "total": bytes}``, the snapshot's folder to the file RESULT. A
download that was cut goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from pathlib import Path
from typing import Any

PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "tokenizer*", "*.tiktoken")


def wanted_bytes(info: Any) -> int:
    """Bytes of the files that will be fetched."""
    from fnmatch import fnmatch

    return sum(s.size or 0 for s in info.siblings if any(fnmatch(s.rfilename, pattern) for pattern in PATTERNS))


def tell(done: int, total: int) -> None:
    sys.stdout.write(json.dumps({"done": done, "total": total}) + "\n")
    sys.stdout.flush()


def blob_bytes(repo: str) -> int:
    """Bytes of the repository in the local cache, unfinished files included."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file()) if folder.is_dir() else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repo")
    parser.add_argument("revision", help="branch, tag or commit; empty for the default branch")
    parser.add_argument("result", type=Path)
    chosen = parser.parse_args()
    from huggingface_hub import HfApi, snapshot_download

    revision = chosen.revision or None
    total = wanted_bytes(HfApi().model_info(chosen.repo, revision=revision, files_metadata=True))
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(1.0):
            tell(blob_bytes(chosen.repo), total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    folder = snapshot_download(chosen.repo, revision=revision, allow_patterns=list(PATTERNS))
    finished.set()
    watcher.join()
    tell(total, total)
    chosen.result.write_text(json.dumps({"path": folder}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
