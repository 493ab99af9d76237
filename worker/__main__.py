"""The host agent: ``python -m worker --config FILE``.

Runs in the foreground until SIGTERM or Ctrl-C. Ending the agent, however it ends, leaves its engines serving; the next
agent of the same folder adopts them. To end the engines as well, stop the agent first, then run
``python -m worker --config FILE --stop-engines``: it ends every engine, builder and download of that folder within
20 seconds (SIGTERM to each process group, SIGKILL to what is left) and needs neither agent nor broker.

Exit codes: 0 as asked; 1 the engines could not be ended, or the supervisor broke; 2 the configuration is unusable;
3 another agent works in the folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from worker.agent import AlreadyRunning, FolderLock
from worker.celery import create_app, worker_arguments
from worker.config import CONFIG_VARIABLE, ConfigError, load_config
from worker.stop import stop_engines


def _say(text: str) -> None:
    sys.stderr.write(f"agent: {text}\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m worker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help=f"agent.json of this host (default: ${CONFIG_VARIABLE})")
    parser.add_argument("--stop-engines", action="store_true", help="end all engines of this agent's folder and leave")
    chosen = parser.parse_args(arguments)
    try:
        config = load_config(chosen.config)
        os.umask(0o077)
        if chosen.stop_engines:
            left = stop_engines(config, say=_say)
            if left:
                _say(f"{left} processes did not end")
            return 1 if left else 0
        lock = FolderLock(config.folder)
        lock.acquire()
    except ConfigError as error:
        _say(str(error))
        return 2
    except AlreadyRunning as error:
        _say(str(error))
        return 3
    # Celery ends with sys.exit; the lock falls with the process.
    create_app(config).worker_main(worker_arguments(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
