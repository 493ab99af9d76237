"""Where a replica goes, and why not elsewhere."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from capacity.policy.placement import FRESH_REPORT_S, AcceleratorView, HostView, Need, place

GIB = 1 << 30


def host(name: str, **changes) -> HostView:
    base = HostView(
        id=f"id-{name}", name=name, state="active", report_age_s=1.0, cores=8, memory_available_bytes=16 * GIB
    )
    return replace(base, **changes)


def gpus(*taken: bool, memory: int = 80) -> tuple[AcceleratorView, ...]:
    return tuple(AcceleratorView(i, memory * GIB, taken=t) for i, t in enumerate(taken))


@st.composite
def hosts(draw: st.DrawFn) -> list[HostView]:
    names = draw(st.lists(st.sampled_from("abcdefgh"), max_size=6, unique=True))
    return [
        host(
            name,
            state=draw(st.sampled_from(["active", "active", "cordoned", "lost"])),
            report_age_s=draw(st.one_of(st.none(), st.floats(0, 30))),
            memory_available_bytes=draw(st.integers(0, 8)) * GIB,
            memory_committed_bytes=draw(st.integers(0, 8)) * GIB,
            accelerators=tuple(
                AcceleratorView(i, draw(st.integers(1, 80)) * GIB, draw(st.booleans()), draw(st.booleans()))
                for i in range(draw(st.integers(0, 4)))
            ),
            replicas=draw(st.integers(0, 5)),
            peers=draw(st.integers(0, 3)),
            starting=draw(st.integers(0, 3)),
        )
        for name in names
    ]


@given(hosts(), st.integers(0, 3), st.integers(0, 4), st.integers(0, 40), st.randoms())
def test_what_is_chosen_fits_and_every_other_host_says_why_not(there, count, memory, gpu_memory, random):
    need = Need(count, memory * GIB, gpu_memory * GIB)
    placed = place(need, there)
    by_id = {h.id: h for h in there}
    chosen = by_id.get(placed.host_id)
    assert set(placed.rejected) == {h.name for h in there if h is not chosen}
    assert all(placed.rejected.values())
    if chosen is not None:
        assert chosen.state == "active"
        assert chosen.report_age_s is not None
        assert chosen.report_age_s <= FRESH_REPORT_S
        assert chosen.memory_available_bytes - chosen.memory_committed_bytes >= need.memory_bytes
        assert len(set(placed.accelerators)) == count
        for index in placed.accelerators:
            accelerator = chosen.accelerators[index]
            assert accelerator.is_healthy
            assert not accelerator.taken
            assert accelerator.memory_bytes >= need.accelerator_memory_bytes
    random.shuffle(there)
    assert place(need, there).host_id == placed.host_id


def test_nothing_fits_names_each_host_and_its_obstacle():
    there = [
        host("a", state="cordoned"),
        host("b", report_age_s=None),
        host("c", report_age_s=42.0),
        host("d", memory_available_bytes=GIB),
        host("e", accelerators=gpus(True, True)),
        host("f", accelerators=gpus(False), labels={"zone": "x"}),
    ]
    placed = place(Need(accelerators=1, memory_bytes=2 * GIB, labels={"zone": "y"}), there)
    assert placed.host_id is None
    assert "a: it is cordoned" in placed.reason
    assert "c: its agent has been silent for 42 s" in placed.reason
    assert place(Need(), []).reason == "no host fits (no host has joined)"
    unlabelled = place(Need(accelerators=1, memory_bytes=2 * GIB), there[:5])
    assert unlabelled.rejected["d"] == "1.0 GiB of memory free, 2.0 GiB needed"
    assert unlabelled.rejected["e"] == "0 suitable accelerators free, 1 needed"
    assert place(Need(labels={"zone": "y"}), there[5:]).rejected["f"] == "label zone is not y"


def test_replicas_of_a_deployment_spread_over_hosts():
    there = {name: host(name) for name in "abc"}
    for _ in range(6):
        chosen = place(Need(), there.values()).host_id
        name = next(n for n, h in there.items() if h.id == chosen)
        there[name] = replace(there[name], peers=there[name].peers + 1, replicas=there[name].replicas + 1)
    assert [h.peers for h in there.values()] == [2, 2, 2]


def test_engines_do_not_all_start_on_one_host():
    assert place(Need(), [host("a", starting=2), host("b", starting=0, replicas=3)]).host_id == "id-b"


def test_small_accelerators_and_small_gaps_are_filled_first():
    big_gap = host("a", accelerators=gpus(False, False, False, False))
    small_gap = host("b", accelerators=gpus(True, True, True, False))
    assert place(Need(accelerators=1), [big_gap, small_gap]).host_id == "id-b"
    mixed = host("m", accelerators=(AcceleratorView(0, 80 * GIB), AcceleratorView(1, 24 * GIB)))
    assert place(Need(accelerators=1, accelerator_memory_bytes=20 * GIB), [mixed]).accelerators == (1,)


def test_cpu_replicas_leave_accelerator_hosts_alone():
    assert place(Need(), [host("a", accelerators=gpus(False)), host("b")]).host_id == "id-b"


def test_committed_memory_is_not_given_out_twice():
    full = host("a", memory_available_bytes=4 * GIB, memory_committed_bytes=3 * GIB)
    assert place(Need(memory_bytes=2 * GIB), [full]).host_id is None
