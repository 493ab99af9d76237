"""Deployments made as an operator makes them: of a model and a name, with nothing said of how to serve it."""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.stack import Stack

_CODE = """
import json
from capacity.services.pools import model_create, pool_create
from penstock.demo import this_hardware
from serving.services import deployment_create
given = json.loads({given!r})
model = model_create(name=given["name"], actor="test", **given["model"])
pool = pool_create(name=given["name"], model=model, hardware_type=this_hardware(), actor="test")
made = deployment_create(pool=pool, name=given["name"], actor="test", **given["deployment"]).revisions.get()
price = pool.profiles.get()
terms = ("base", "alpha", "beta", "gamma", "epsilon", "cached_factor", "modalities")
print(json.dumps(dict(runtime=made.runtime, reason=made.runtime_reason, options=made.options,
                      **{{name: getattr(price, name) for name in terms}})))
"""


def deploy(stack: Stack, name: str, *, model: dict[str, Any], **deployment: Any) -> dict[str, Any]:
    """Returns the revision's ``runtime``, ``reason`` and ``options``, and the terms of the pool's price."""
    given = json.dumps({"name": name, "model": model, "deployment": deployment})
    said: dict[str, Any] = json.loads(stack.manage(_CODE.format(given=given)).splitlines()[-1])
    return said
