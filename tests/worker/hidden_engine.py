"""A simulated engine that draws its own coefficients and tells nobody: ``python hidden_engine.py --truth FILE ...``.

What it drew goes into a file for whoever wants to check what was measured, once that is done. All other arguments are
those of ``worker.simulated``.
"""

import json
import os
import random
import sys
from pathlib import Path

from worker.simulated.__main__ import main


def drawn() -> dict[str, float]:
    """Engine milliseconds per term. Each makes up a good part of some requests; which part, only this process knows."""
    dice = random.Random(os.urandom(16))
    return {
        "base_ms": dice.uniform(2.0, 4.0),
        "alpha_ms": dice.uniform(0.03, 0.06),
        "beta_ms": dice.uniform(0.6, 1.2),
        "gamma_ms": dice.uniform(2e-3, 6e-3),
        "epsilon_ms": dice.uniform(6e-5, 1.2e-4),
    }


if __name__ == "__main__":
    at = sys.argv.index("--truth")
    path = Path(sys.argv[at + 1])
    del sys.argv[at : at + 2]
    at = sys.argv.index("--profile") + 1
    profile = json.loads(sys.argv[at]) | drawn()
    path.write_text(json.dumps(profile))
    sys.argv[at] = json.dumps(profile)
    sys.exit(main())
