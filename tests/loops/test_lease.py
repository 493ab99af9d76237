"""One holder at a time, in threads and after a death."""

from __future__ import annotations

import datetime
import threading
import time

import pytest
from django.db import OperationalError, connection
from django.utils import timezone

from penstock.loops.lease import acquire, lease
from tenants.models import Lease

SECOND = datetime.timedelta(seconds=1)


@pytest.mark.django_db
class TestLease:
    def test_the_second_finds_it_taken(self) -> None:
        with lease("x", every_s=1, limit_s=10) as first, lease("x", every_s=1, limit_s=10) as second:
            assert (first, second) == (True, False)

    def test_leases_of_other_names_are_other_leases(self) -> None:
        with lease("x", every_s=1, limit_s=10) as first, lease("y", every_s=1, limit_s=10) as second:
            assert first
            assert second

    def test_it_is_kept_for_most_of_the_period(self) -> None:
        with lease("x", every_s=100, limit_s=500):
            pass
        until = Lease.objects.get(name="x").until
        assert 70 * SECOND < until - timezone.now() <= 80 * SECOND

    def test_a_dead_holder_is_waited_for_no_longer_than_the_limit(self) -> None:
        now = timezone.now()
        assert acquire("x", now=now, limit_s=10)
        assert acquire("x", now=now + 9 * SECOND, limit_s=10) is None
        assert acquire("x", now=now + 11 * SECOND, limit_s=10)

    def test_an_overrun_holder_does_not_take_it_from_the_next(self) -> None:
        with lease("x", every_s=1, limit_s=10):
            Lease.objects.update(until=timezone.now() - SECOND)
            assert acquire("x", now=timezone.now(), limit_s=60)
        assert Lease.objects.get().until - timezone.now() > 30 * SECOND

    def test_a_failing_tick_gives_it_back(self) -> None:
        with pytest.raises(RuntimeError), lease("x", every_s=0.0, limit_s=60):
            raise RuntimeError
        assert acquire("x", now=timezone.now(), limit_s=1)


@pytest.mark.django_db(transaction=True)
def test_of_many_racing_for_it_one_wins_each_round() -> None:
    now = timezone.now()
    wins: list[int] = []

    def try_once(number: int) -> bool:
        while True:
            try:
                return acquire("race", now=now + number * 2 * SECOND, limit_s=1) is not None
            except OperationalError:
                # SQLite in memory, shared by threads, refuses where a file would wait.
                time.sleep(0.001)

    def race(rounds: int) -> None:
        for number in range(rounds):
            if try_once(number):
                wins.append(number)
        connection.close()

    threads = [threading.Thread(target=race, args=(15,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(wins)) == sorted(wins)
    assert wins
