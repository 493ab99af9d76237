"""Placement: what a replica needs of a host by what it runs, and what its agent makes of the order."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext

from capacity.models import CostProfile, HardwareType, Host, Pool
from capacity.selectors import profile_in_force, profiles_in_force
from capacity.services import hardware_type_get_or_create, model_create, pool_create
from penstock.loops import placing
from penstock.loops.placing import need_of, place_pending
from penstock.loops.reconcile import reconcile
from serving.agents.orders import replica_orders
from serving.models import Replica, Revision
from serving.options import PLACEMENT_OPTIONS
from serving.services import deployment_create, replica_create
from tests.factories import race
from tests.loops.conftest import BOSS, World
from worker.runtimes import get_runtime
from worker.runtimes import vllm as vllm_runtime
from worker.runtimes.base import HostFacts
from worker.spec import AcceleratorReport

pytestmark = pytest.mark.django_db

GIB = 1 << 30
CUDA = HostFacts(cores=8.0, memory_bytes=64 * GIB, has_cuda=True, engines=1, python="python")


@pytest.fixture
def gpu() -> HardwareType:
    return hardware_type_get_or_create(name="H200", actor=BOSS, memory_bytes=141 * GIB)


def waiting(hardware: HardwareType, runtime: str, **fields: Any) -> Replica:
    """A replica that looks for a host, of a pool priced on ``hardware``."""
    model = model_create(
        name=f"model {Pool.objects.count()}", artifact_kind=fields.pop("kind", "tiny"), actor=BOSS,
        artifact_value=fields.pop("value", ""), parameters=fields.pop("parameters", 100_000),
    )  # fmt: skip
    pool = pool_create(name=model.name, model=model, hardware_type=hardware, actor=BOSS)
    deployment = deployment_create(pool=pool, name=model.slug, runtime=runtime, actor=BOSS, **fields)
    return replica_create(deployment=deployment, revision=deployment.revisions.get(), reason="wanted")


def has(world: World, accelerators: int, memory_bytes: int = 30 * GIB) -> Host:
    """The world's only host, reporting so many accelerators and so much free memory."""
    world.agent.accelerators = tuple(
        AcceleratorReport(index=index, name="H200", uuid=f"GPU-{index}", memory_bytes=141 * GIB)
        for index in range(accelerators)
    )
    world.deliver(world.agent)
    host = world.host()
    Host.objects.filter(pk=host.pk).update(report={**host.report, "memory_available_bytes": memory_bytes})
    return host


def placed(world: World, *replicas: Replica) -> list[list[int] | None]:
    """The accelerators that each replica was given; None for one that found no host."""
    place_pending(profiles=profiles_in_force(at=world.at), now=world.at)
    for replica in replicas:
        replica.refresh_from_db()
    return [None if replica.host_id is None else replica.accelerators for replica in replicas]


def test_a_simulated_engine_takes_no_accelerator_from_a_real_one(world: World, gpu: HardwareType) -> None:
    has(world, 1)
    simulated, real = waiting(gpu, "simulated"), waiting(gpu, "vllm")
    assert placed(world, simulated, real) == [[], [0]]


def test_a_simulated_engine_runs_where_no_accelerator_is(world: World, gpu: HardwareType) -> None:
    has(world, 0)
    simulated, real = waiting(gpu, "simulated"), waiting(gpu, "vllm")
    assert placed(world, simulated, real) == [[], None]
    assert "0 suitable accelerators free, 1 needed" in real.reason


def test_an_engine_on_the_cpu_needs_memory_for_itself_and_its_cache(world: World) -> None:
    cpu = hardware_type_get_or_create(name="CPU", actor=BOSS, is_cpu=True)
    has(world, 0, memory_bytes=GIB)
    tiny = waiting(cpu, "vllm")
    assert placed(world, tiny) == [None]
    assert "1.0 GiB of memory free, 1.1 GiB needed" in tiny.reason
    has(world, 0, memory_bytes=3 * GIB)
    assert placed(world, tiny) == [[]]


def test_classic_models_and_commands_have_no_cache_of_vllms(world: World, gpu: HardwareType) -> None:
    cpu = hardware_type_get_or_create(name="CPU", actor=BOSS, is_cpu=True)

    def need(hardware: HardwareType, runtime: str, options: dict[str, Any], **model: Any) -> tuple[int, int]:
        model = {"kind": "path", "value": f"/m{Pool.objects.count()}", "parameters": None, **model}
        replica = waiting(hardware, runtime, options=options, **model)
        found = need_of(replica, profile_in_force(pool_id=replica.deployment.pool_id, at=world.at))
        return found.accelerators, found.memory_bytes

    argv = {"argv": ["server"]}
    assert need(cpu, "mlflow", {}) == need(gpu, "mlflow", {}) == (0, placing.MLFLOW_BYTES)
    assert need(cpu, "mlflow", {"memory_bytes": 5 * GIB}) == (0, 5 * GIB)
    assert need(cpu, "command", argv) == (0, 0)
    assert need(cpu, "command", argv, parameters=1_000_000_000) == (0, int(2.4e9))
    assert need(gpu, "command", argv) == (1, 0)
    assert need(gpu, "command", {**argv, "accelerators": 0, "memory_bytes": GIB}) == (0, GIB)


@pytest.mark.parametrize(
    ("kind", "value", "options", "kv_bytes"),
    [
        ("tiny", "", {}, vllm_runtime.TINY_KV_BYTES),
        ("hub", "org/name", {}, vllm_runtime.CPU_KV_BYTES),
        ("hub", "org/name", {"kv_cache_bytes": 5 * GIB}, 5 * GIB),
    ],
)
def test_the_cache_is_the_one_that_the_agent_will_give(
    world: World, kind: str, value: str, options: dict[str, Any], kv_bytes: int
) -> None:
    cpu = hardware_type_get_or_create(name="CPU", actor=BOSS, is_cpu=True)
    replica = waiting(cpu, "vllm", kind=kind, value=value, options=options, parameters=1_000_000_000)
    need = need_of(replica, profile_in_force(pool_id=replica.deployment.pool_id, at=world.at))
    assert need.memory_bytes == int(2.4e9) + placing.CPU_ENGINE_BYTES + kv_bytes


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"tensor_parallel_size": 2}, [0, 1]),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, [0, 1, 2, 3]),
        ({"accelerators": 4}, [0, 1, 2, 3]),
        ({"memory_bytes": GIB, "host_labels": {}}, [0]),
    ],
)
def test_the_agent_takes_an_order_with_options_of_placement(
    world: World, gpu: HardwareType, options: dict[str, Any], given: list[int]
) -> None:
    host = has(world, 4)
    replica = waiting(gpu, "vllm", options=options | {"max_model_len": 4096})
    assert placed(world, replica) == [given]
    (order,) = replica_orders(host, drain_limit_s=30.0)
    plan = get_runtime("vllm").launch_plan(order=order, host=CUDA, environment=Path("e"), weights=Path("w"), port=1)
    parallel = plan.argv[plan.argv.index("--tensor-parallel-size") + 1]
    assert int(parallel) * options.get("pipeline_parallel_size", 1) == len(given)
    assert plan.argv[plan.argv.index("--max-model-len") + 1] == "4096"


def test_the_simulated_engine_takes_them_too(world: World, gpu: HardwareType) -> None:
    host = has(world, 2)
    replica = waiting(gpu, "simulated", options={"accelerators": 1, "memory_bytes": GIB, "host_labels": {}, "seed": 3})
    assert placed(world, replica) == [[0]]
    (order,) = replica_orders(host, drain_limit_s=30.0)
    get_runtime("simulated").launch_plan(order=order, host=CUDA, environment=None, weights=None, port=1)
    assert order.options == {"seed": 3}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("memory_bytes", [30 * GIB, 2 * GIB])
def test_passes_that_overlap_give_nothing_twice(
    world: World, gpu: HardwareType, memory_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen the accelerator, or the memory, free before either takes it."""
    cpu = hardware_type_get_or_create(name="CPU", actor=BOSS, is_cpu=True)
    has(world, 1, memory_bytes=memory_bytes)
    kind = gpu if memory_bytes == 30 * GIB else cpu
    replicas = [waiting(kind, "vllm") for _ in range(2)]
    both, place, calls = threading.Barrier(2), placing.place, itertools.count()

    def overlapping(*args: Any) -> Any:
        placement = place(*args)
        if next(calls) < 2:
            both.wait(60)
        return placement

    monkeypatch.setattr(placing, "place", overlapping)
    profiles = profiles_in_force(at=world.at)
    outcomes = race(*[lambda each=each: placing.place_one(each, profiles=profiles, now=world.at) for each in replicas])
    assert sorted(outcomes) == [False, True]
    assert Replica.objects.filter(host__isnull=False).count() == 1


def test_one_that_cannot_be_placed_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cpu = hardware_type_get_or_create(name="CPU", actor=BOSS, is_cpu=True)
    has(world, 0)
    poison, good = waiting(cpu, "simulated"), waiting(cpu, "simulated")
    need = placing.need_of

    def picky(replica: Replica, profile: Any) -> Any:
        if replica.pk == poison.pk:
            raise ValueError("two is no number")
        return need(replica, profile)

    monkeypatch.setattr(placing, "need_of", picky)
    assert placed(world, poison, good) == [None, []]
    assert "two is no number" in caplog.text
    assert poison.reason == "its placement fails: the log of the role loops says why"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accelerators": "x"}, "accelerators: give a whole number from 0"),
        ({"memory_bytes": None}, "memory_bytes: give a whole number from 0"),
        ({"kv_cache_bytes": "much"}, "kv_cache_bytes: give a whole number from 1"),
        (["no", "object"], "options: give values by name"),
    ],
)
def test_a_neighbour_that_cannot_be_read_counts_as_what_it_was_given(
    world: World, gpu: HardwareType, options: object, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One that was placed before its options were checked, and still starts."""
    has(world, 3)
    neighbour = waiting(gpu, "vllm")
    assert placed(world, neighbour) == [[0]]
    Replica.objects.filter(pk=neighbour.pk).update(state=Replica.State.STARTING)
    QuerySet(Revision).filter(pk=neighbour.revision_id).update(options=options)
    assert placed(world, waiting(gpu, "vllm"), waiting(gpu, "vllm")) == [[1], [2]]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{neighbour} starts on its host with options that cannot be read")
    assert words in record.getMessage()


@pytest.mark.parametrize(
    ("options", "free"),
    [
        ({"accelerators": "x", "memory_bytes": "x"}, "0.9 GiB"),
        ({"host_labels": "gpu", "memory_bytes": 3 * GIB // 2}, "0.5 GiB"),
    ],
)
def test_a_neighbour_on_the_cpu_takes_what_can_be_read_or_its_models_memory(
    world: World, options: dict[str, Any], free: str
) -> None:
    cpu = hardware_type_get_or_create(name="CPU", actor=BOSS, is_cpu=True)
    has(world, 0, memory_bytes=2 * GIB)
    neighbour, sound = waiting(cpu, "vllm"), waiting(cpu, "vllm")
    Replica.objects.filter(pk=neighbour.pk).update(state=Replica.State.STARTING, host=world.host())
    QuerySet(Revision).filter(pk=neighbour.revision_id).update(options=options)
    assert placed(world, sound) == [None]
    assert f"{free} of memory free, 1.1 GiB needed" in sound.reason


def test_a_pass_asks_for_the_prices_once(world: World, gpu: HardwareType) -> None:
    has(world, 4)
    for _ in range(4):
        waiting(gpu, "vllm")
    with CaptureQueriesContext(connection) as queries:
        reconcile(world.client, now=world.now)
    assert Replica.objects.filter(host__isnull=False).count() >= 4
    assert sum(f'FROM "{CostProfile._meta.db_table}"' in query["sql"].split(" WHERE ")[0] for query in queries) == 1


def test_no_engine_has_an_option_of_placement() -> None:
    assert not PLACEMENT_OPTIONS & set(vllm_runtime.VllmOptions.__struct_fields__)


@pytest.mark.parametrize("options", [{"tensor_parallel_size": "auto"}, {"host_labels": "gpu"}, {"memory_bytes": None}])
def test_a_revision_that_cannot_be_read_holds_up_nobody(
    world: World, gpu: HardwareType, options: dict[str, Any]
) -> None:
    """One that was stored before its options were checked."""
    has(world, 1)
    broken, sound = waiting(gpu, "vllm"), waiting(gpu, "vllm")
    QuerySet(Revision).filter(pk=broken.revision_id).update(options=options)
    assert placed(world, broken, sound) == [None, [0]]
    assert broken.reason.startswith("make a revision with other options. ")
    assert next(iter(options)) in broken.reason


def test_replacements_of_one_host_do_not_share_the_same_memory(world: World) -> None:
    """As the loop places them: what the first was given, the second does not find; a third that needs less does."""
    cpu = hardware_type_get_or_create(name="CPU", actor=BOSS, is_cpu=True)
    has(world, 0, memory_bytes=30 * GIB)
    sizes = (2 * GIB, 2 * GIB, GIB)
    leaving = [waiting(cpu, "simulated", options={"memory_bytes": size}) for size in sizes]
    assert placed(world, *leaving) == [[], [], []]
    second = world.add_host("host-2")
    world.deliver(second)
    host = world.host(second)
    Host.objects.filter(pk=host.pk).update(report={**host.report, "memory_available_bytes": 3 * GIB})
    found = placing.without_room(leaving, host=world.host(), profiles=profiles_in_force(at=world.at), now=world.at)
    assert found == [leaving[1]]
    assert Replica.objects.count() == 3
