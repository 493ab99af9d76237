"""The real agent with one runtime more, for tests: ``python agent_main.py --config FILE``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from worker.__main__ import main
from worker.runtimes import RUNTIMES

RUNTIMES["fake"] = "fake_runtime:FakeRuntime"

if __name__ == "__main__":
    sys.exit(main())
