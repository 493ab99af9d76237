"""What must be true of an installation when everything has ended, read from outside of it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
import pytest
import redis

from tests.e2e.stack import Stack
from tests.faults.conservation import Account, Tokens

EPSILON_S = 0.005
"""An engine notes the end of a stream just after its last bytes have left."""
TINY = 1e-6
"""Of sums of MU: what their adding and taking away leaves."""
SUMMED = ("input_tokens", "cached_tokens", "output_tokens", "mu")


def engines(stack: Stack) -> list[str]:
    """Addresses of the simulated replicas that serve."""
    return [
        row["address"]
        for row in stack.rows(
            "select r.address from serving_replica r join serving_deployment d on d.id = r.deployment_id"
            " where d.name = 'demo-sim' and r.state = 'ready' order by r.address"
        )
    ]


def bare(request_id: str) -> str:
    """A UUID as SQLite keeps it."""
    return request_id.replace("-", "")


def engine_log(stack: Stack, since: float, until: float = float("inf")) -> dict[str, list[dict[str, Any]]]:
    """Gateways' request id → what the engines themselves noted of it, an entry per attempt, the first first."""
    noted: dict[str, list[dict[str, Any]]] = {}
    for path in stack.data.glob("agent/replicas/*/requests.jsonl*"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if since <= entry["received_at"] < until and len(entry["request_id"]) == 36:
                noted.setdefault(bare(entry["request_id"]), []).append(entry)
    return {name: sorted(found, key=lambda entry: entry["received_at"]) for name, found in noted.items()}


def unix(text: str) -> float:
    """A moment as SQLite keeps it, in UNIX seconds."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def conservation(stack: Stack, since: float) -> Account:
    """Every attempt that an engine noted since ``since`` against every usage record admitted since then."""
    account, noted = Account(), engine_log(stack, since)
    for entry in (entry for found in noted.values() for entry in found):
        account.counted(_counted(entry))
    for row in stack.usage():
        attempts = noted.pop(bare(row["id"]), [])
        if attempts or unix(row["admitted_at"]) >= since:
            booked = Tokens(row["input_tokens"], row["cached_tokens"], row["output_tokens"])
            account.record(row["outcome"], booked, [_counted(entry) for entry in attempts])
    assert not noted, f"at an engine, and in no usage record: {sorted(noted)}"
    account.check()
    return account


def _counted(entry: dict[str, Any]) -> Tokens:
    return Tokens(entry["prompt_tokens"], entry["cached_tokens"], entry["generated_tokens"])


def rollups_are_sums(stack: Stack) -> tuple[int, int]:
    """Minutes, hours and days are the sums of the records, and so are the final minutes alone.

    Returns how many records there are, and how many of them are in final minutes.
    """
    by = ("tenant_id", "key_id", "pool_id", "deployment_id", "service_class")
    columns, sums = ", ".join(by), ", ".join(f"sum({name}) as {name}" for name in SUMMED)
    with stack.database() as connection:
        # One transaction: the loops go on writing.
        connection.execute("begin")
        records = [dict(row) for row in connection.execute("select * from capacity_usagerecord")]
        final_until = connection.execute("select final_until from capacity_booksstate").fetchone()
        found: dict[str, list[dict[str, Any]]] = {}
        for name, where in {
            "minute": "period = 'minute'",
            "hour": "period = 'hour'",
            "day": "period = 'day'",
            "final": "period = 'minute' and is_final",
        }.items():
            query = f"select {columns}, sum(requests) as requests, {sums} from capacity_usagerollup where {where}"
            found[name] = [dict(row) for row in connection.execute(f"{query} group by {columns}")]
    closed = final_until["final_until"] if final_until is not None else None
    final = [row for row in records if closed and unix(row["ended_at"]) < unix(closed)]
    for name, rows in found.items():
        expected = _sums(final if name == "final" else records, by)
        assert len(rows) == len(expected), name
        for row in rows:
            totals = expected[tuple(row[column] for column in by)]
            assert {one: row[one] for one in totals} == pytest.approx(dict(totals), rel=1e-9), name
    return len(records), len(final)


def _sums(records: Iterable[dict[str, Any]], by: Sequence[str]) -> dict[tuple[Any, ...], Counter[str]]:
    made: dict[tuple[Any, ...], Counter[str]] = defaultdict(Counter)
    for row in records:
        values = row | {"mu": row["actual_mu"]}
        made[tuple(row[column] for column in by)].update({"requests": 1} | {name: values[name] for name in SUMMED})
    return made


def held(client: redis.Redis) -> list[str]:
    """What gateways that live still hold: requests and MU at replicas, in queues, seats of limits, of budgets.

    Two are to live; one that was killed is back in a while.
    """
    found, live = [], set()
    for key in client.scan_iter("penstock:gw:*"):
        raw = cast("bytes | None", client.get(key))
        if raw is None:
            continue
        beat = msgspec.json.decode(raw)
        live.add(beat["gateway"])
        for replica, load in beat.get("replicas", {}).items():
            left = {name: load[name] for name in ("n", "w", "d", "lent_w", "lent_d") if load.get(name, 0) > TINY}
            found += [f"{beat['gateway']} at {replica}: {left}"] if left else []
        for deployment, counts in beat.get("deployments", {}).items():
            waiting = counts.get("queue_mu", 0.0)
            found += [f"{beat['gateway']} queues {waiting} MU for {deployment}"] if waiting > TINY else []
    found += [] if len(live) >= 2 else [f"gateways that are heard of: {sorted(live)}"]
    for key in client.scan_iter("penstock:held:*"):
        for name, seats in cast("dict[bytes, bytes]", client.hgetall(key)).items():
            if name.decode().removeprefix("free:") in live and float(seats) > 0:
                found.append(f"{key.decode()} {name.decode()}: {seats.decode()} seats")
    for key in client.scan_iter("penstock:budget:*"):
        for name, told in cast("dict[bytes, bytes]", client.hgetall(key)).items():
            if name.decode() in live:
                running, lease, *_ = msgspec.msgpack.decode(told)
                found += [f"{key.decode()} {name.decode()}: {running} running, {lease} set aside"] * (
                    running + lease > 0
                )
    return found


def most_at_once(spans: Iterable[tuple[float, float]]) -> list[tuple[float, int]]:
    """(moment, how many of ``spans`` (start, end) held then), for every start."""
    moments = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    running, found = 0, []
    for at, step in moments:
        running += step
        if step > 0:
            found.append((at, running))
    return found


def most_in_any_window(times: Sequence[float], rate_per_s: float) -> list[tuple[float, float, float]]:
    """(window's start, its end, events in it beyond ``rate_per_s`` times its length), the worst window by its end."""
    found = []
    best, start = float("-inf"), 0.0
    for index, at in enumerate(sorted(times)):
        # Events from the i-th to this one are index - i + 1, and drain from the i-th on.
        if -index + rate_per_s * at > best:
            best, start = -index + rate_per_s * at, at
        found.append((start, at, index + 1 + best - rate_per_s * at))
    return found
