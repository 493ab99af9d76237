"""``penstock doctor``."""

import argparse
import json
import sys
from dataclasses import asdict

from penstock import doctor, env
from penstock.logs import wants_colour
from penstock.machine import gather
from penstock.roles import Options

_MARKS = {"ok": ("ok  ", 32), "warn": ("warn", 33), "fail": ("FAIL", 31)}


def run(arguments: argparse.Namespace) -> int:
    options = Options(
        data=arguments.data.expanduser().resolve(),
        host=arguments.host,
        port=arguments.port,
        api_port=arguments.api_port,
        redis_url=env.text("REDIS_URL"),
    )
    facts = gather(options, database_url=env.text("DATABASE_URL"))
    findings = doctor.judge(facts)
    engine, obstacle = doctor.choose_engine("auto", facts)
    if arguments.json:
        outcome = {"status": doctor.worst(findings), "engine": engine, "why_no_vllm": obstacle}
        print(json.dumps({**outcome, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            print("\n".join(lines(finding, colour=wants_colour(sys.stdout))))
        print(f"{'real vLLM':<14} " + (f"cannot run here: {obstacle}" if obstacle else "can run here"))
    return 1 if doctor.worst(findings) == "fail" else 0


def lines(finding: doctor.Finding, *, colour: bool) -> list[str]:
    """One finding for a person: a line, and what to do on a second when it is not ok."""
    mark, number = _MARKS[finding.status]
    shown = f"\x1b[{number}m{mark}\x1b[0m" if colour else mark
    text = [f"{finding.name:<14} {shown}  {finding.detail}"]
    if finding.status != "ok" and finding.advice:
        text.append(f"{'':<14}       {finding.advice}")
    return text
