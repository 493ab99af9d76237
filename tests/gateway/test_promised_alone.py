"""While no state answers a gateway knows its own part of a reservation alone: what it refuses beyond that is counted as
what nobody could tell, so that the guarantee ledger has it."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from capacity.usage.lines import RefusalField, refusal_counts_key
from tests.gateway.harness import PROFILE, Gateway, cluster, key_record, wait_for

SENT = {"prompt": "abcd" * 10, "max_tokens": 20}
"""4.6 MU."""
LONG = SENT | {"user": json.dumps({"first_ms": 2000})}


def ask(gateway: Gateway, pool: str, body: dict[str, Any]) -> httpx.Response:
    headers = {"authorization": "Bearer mu_own_secret"}
    return httpx.post(f"{gateway.url}/v1/completions", json={**body, "model": pool}, headers=headers, timeout=20)


def test_what_is_refused_beyond_a_gateways_part_of_a_reservation_is_not_known_to_be_beyond_it() -> None:
    with cluster() as made:
        engine = made.engine("a")
        pools = {"lends": {"best_effort_wait_s": 0.05}, "keeps": {"best_effort": False}}
        for name, more in pools.items():
            sold = {"id": f"r-{name}", "tenant": "own", "pool": name, "profile": PROFILE}
            deployment = {"id": f"d-{name}", "name": name, "pool": name, "revision": "r1", "runtime": "simulated"}
            made.publish(
                ("pool", {"id": name, "slug": name, "profile": PROFILE, **more}),
                ("deployment", deployment),
                ("replica", engine.replica(f"d-{name}", target_concurrency=1 if name == "lends" else 64)),
                ("reservation", sold | {"mu_per_min": 1.0, "burst_mu": 30.0, "starts_at": 1000.0}),
            )
        made.publish(("tenant", {"id": "own", "slug": "own"}), ("key", key_record("own", "own")))
        gateways = [made.start_gateway(f"g{number}") for number in (1, 2)]
        made.settle(*[gateway.wait() for gateway in gateways])

        def standing(gateway: Gateway) -> dict[str, Any]:
            found: dict[str, Any] = httpx.get(f"{gateway.url}/readyz").json()["grants"]
            return found

        for gateway in gateways:
            wait_for("two gateways", lambda at=gateway: standing(at)["gateways"] == 2)
            # So that both know what is left of each.
            assert {ask(gateway, pool, SENT).status_code for pool in pools} == {200}
        made.kill_state()
        for gateway in gateways:
            wait_for("to be alone", lambda at=gateway: standing(at)["phase"] == "alone")
        first = gateways[0]
        answers = [ask(first, "keeps", SENT) for _ in range(6)]
        codes = Counter(answer.status_code for answer in answers)
        assert (codes[200] >= 1, codes[503] >= 2, codes[200] + codes[503]) == (True, True, 6), codes
        refused = answers[-1].json()["error"]
        assert (refused["code"], "cannot be told" in refused["message"]) == ("limits_unavailable", True)
        classes = [ask(first, "lends", SENT).headers["x-penstock-class"] for _ in range(6)]
        assert (classes[0], classes[-1]) == ("reserved", "best_effort")
        with ThreadPoolExecutor(1) as pool:
            long = pool.submit(ask, first, "lends", LONG)
            wait_for("a request in the only slot", lambda: httpx.get(f"{first.url}/readyz").json()["in_flight"] == 1)
            time.sleep(0.3)
            late = ask(first, "lends", SENT)
            assert (late.status_code, late.headers["x-penstock-class"]) == (429, "best_effort")
            assert long.result().status_code == 200
        made.start_state()

        def counted() -> Counter[str] | None:
            found: Counter[str] = Counter()
            for minute in range(int(time.time() // 60) - 2, int(time.time() // 60) + 1):
                for field, count in made.client.hgetall(refusal_counts_key(minute)).items():  # type: ignore[union-attr]
                    named = RefusalField.decode(field.decode())
                    found[f"{named.pool} {named.reason}"] += int(count)
            return found if found["lends limits_unavailable"] else None

        told = wait_for("the counts", counted, seconds=15, every=0.1)
        assert told["lends limits_unavailable"] == 1
        assert told["keeps limits_unavailable"] == codes[503]
