"""From nothing to a streamed answer by the command line alone, against the whole house."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.stack import Stack, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.together("stack")]

MAKE_TOKEN = """
from tenants.models import User
from tenants.services import access_token_create
operator = User.objects.filter(is_operator=True).first()
print("token:" + access_token_create(user=operator, name="e2e", actor="test")[1])
"""


def test_from_signing_in_to_a_streamed_chat(stack: Stack, tmp_path: Path) -> None:
    token = stack.manage(MAKE_TOKEN).rpartition("token:")[2].split()[0]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "COLUMNS": "160"}

    def penstock(*words: str, stdin: str = "") -> str:
        command = [sys.executable, "-P", "-m", "penstock", *words]
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=90, env=environment, check=False
        )
        shown = done.stdout + done.stderr
        print(f"$ penstock {' '.join(words)}\n{shown}")
        assert done.returncode == 0, shown
        return done.stdout

    wait_for("demo-sim at the gateways", lambda: stack.is_serving("demo-sim"), seconds=60)
    penstock("login", stack.console_url, stdin=token + "\n")
    assert "yes" in penstock("whoami")
    tenants = json.loads(penstock("tenants", "list", "--json"))
    tenant = tenants[0]["slug"]
    penstock("tenants", "create", "Command Line Ltd")
    hosts = json.loads(penstock("hosts", "list", "--json"))
    assert len(hosts) == 1
    assert "demo-sim" in penstock("deployments", "list")
    assert "ready" in penstock("replicas", "list", "--state", "ready")
    assert penstock("keys", "create", "ci", "--tenant", tenant).startswith("mu_")
    pool = next(
        row["pool"] for row in json.loads(penstock("deployments", "list", "--json")) if row["name"] == "demo-sim"
    )
    assert penstock("deploy", pool, "--name", "second", "--timeout", "60") == "second\n"
    assert penstock("logs", "second", "--lines", "3").strip(), "the engine's own log, through its agent"
    kept = tmp_path / "all.yaml"
    kept.write_text(penstock("export"))
    assert penstock("apply", "--file", str(kept), "--dry-run") == "", "what was exported is what is there"
    kept.write_text("deployments: [{name: second, is_enabled: false}]")
    assert "is_enabled: true → false" in penstock("apply", "--file", str(kept))
    answer = penstock("chat", "demo-sim", "Say", "hello", "--tenant", tenant, "--max-tokens", "16")
    assert answer.strip()
    keys = json.loads(penstock("keys", "list", "--tenant", tenant, "--json"))
    spent = [key for key in keys if key["name"] == "penstock chat"]
    assert [key["is_usable"] for key in spent] == [False], "the conversation's key ended with it"
    key_id = spent[0]["id"].replace("-", "")
    wait_for("the usage row of the conversation", lambda: stack.usage("key_id = ?", key_id), seconds=20)
