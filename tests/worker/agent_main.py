"""The real agent with two runtimes more, for tests: ``python agent_main.py --config FILE``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from worker.__main__ import main
from worker.runtimes import RUNTIMES

RUNTIMES["fake"] = "fake_runtime:FakeRuntime"
RUNTIMES["hidden"] = "hidden_runtime:HiddenRuntime"

if __name__ == "__main__":
    sys.exit(main())
