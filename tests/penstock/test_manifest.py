"""Manifests: what is wrong with one, and what it would change."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from penstock.cli.remote.manifest import ManifestError, difference, read

WHOLE: dict[str, Any] = {
    "tenants": [
        {
            "slug": "acme",
            "name": "Acme",
            "limits": [{"kind": "tokens_per_min", "value": 5}, {"kind": "concurrency", "model": "chat", "value": 2}],
            "keys": [{"name": "ci", "scopes": ["inference", "usage"], "expires_at": None}],
            "members": [{"email": "a@acme.example", "role": "admin"}],
        }
    ],
    "models": [{"slug": "tiny", "name": "Tiny", "artifact_kind": "tiny"}],
    "pools": [{"slug": "tiny", "model": "tiny", "hardware_type": "cpu", "tenants": ["acme"], "slo_share": 1}],
    "deployments": [{"name": "chat", "pool": "tiny", "pinned_replicas": None, "options": {"a": [1]}}],
}
NOTHING: dict[str, set[str]] = {}


def wrong(document: Any) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read(document)
    return list(caught.value.problems)


def test_everything_is_made_in_an_order_that_works() -> None:
    steps = difference(read(WHOLE), {}, {"hardware-types": {"cpu"}})
    assert [str(step.entry) for step in steps] == [
        "tenant acme",
        "member acme/a@acme.example",
        "key acme/ci",
        "limit acme/tokens_per_min",
        "limit acme/concurrency chat",
        "model tiny",
        "pool tiny",
        "deployment chat",
    ]
    assert {step.act for step in steps} == {"create"}


def test_only_what_is_named_and_differs_is_changed() -> None:
    entries = read({"pools": [{"slug": "tiny", "slo_share": 0.5, "keep_spare": False, "tenants": ["b", "a"]}]})
    there = {("pools", "", "tiny"): {"slo_share": 0.9, "keep_spare": False, "tenants": ["a", "b"], "name": "Tiny"}}
    (step,) = difference(entries, there, {"tenants": {"a", "b"}})
    assert (step.act, step.before, step.after) == ("change", {"slo_share": 0.9}, {"slo_share": 0.5})


def test_of_a_price_only_the_named_coefficients_count() -> None:
    price = {"alpha": 0.1, "beta": 0.2, "base": 0.0}
    there = {("pools", "", "tiny"): {"price": price}}
    assert difference(read({"pools": [{"slug": "tiny", "price": {"beta": 0.2}}]}), there, NOTHING) == []
    (step,) = difference(read({"pools": [{"slug": "tiny", "price": {"beta": 0.3}}]}), there, NOTHING)
    assert step.after == {"price": {"beta": 0.3}}


def test_of_options_only_the_named_ones_count_and_null_takes_one_away() -> None:
    there = {("deployments", "", "chat"): {"options": {"task": "embed", "max_model_len": 64}, "runtime": "vllm"}}

    def steps(**fields: Any) -> list[Any]:
        entries = read({"deployments": [{"name": "chat", **fields}]})
        return [step.after for step in difference(entries, there, NOTHING)]

    assert steps(options={"max_model_len": 64}) == steps(options={}) == steps(options={"gone": None}) == []
    assert steps(options={"max_model_len": 32}) == [{"options": {"max_model_len": 32}}]
    assert steps(options={"task": None}) == [{"options": {"task": None}}]
    assert steps(options={}, runtime="simulated") == [{"options": {}, "runtime": "simulated"}]


def test_who_is_invited_with_another_role_is_told_before_anything_is_done() -> None:
    entries = read({"tenants": [{"slug": "acme", "members": [{"email": "New@Acme.example", "role": "admin"}]}]})
    invited = {"role": "viewer", "is_invited": True}
    there = {("tenants", "", "acme"): {}, ("members", "acme", "new@acme.example"): invited}
    with pytest.raises(ManifestError, match=r"invited as viewer: penstock invitations revoke new@acme\.example"):
        difference(entries, there, NOTHING)
    same = read({"tenants": [{"slug": "acme", "members": [{"email": "new@acme.example", "role": "viewer"}]}]})
    assert difference(same, there, NOTHING) == []


@pytest.mark.parametrize(("marks", "differs"), [({}, True), ({"is_draining": True}, False)])
def test_no_manifest_puts_a_host_to_use_that_is_being_drained(marks: dict[str, bool], differs: bool) -> None:
    entries = read({"hosts": [{"name": "rack-1", "is_cordoned": False}]})
    there = {("hosts", "", "rack-1"): {"labels": {}, "is_cordoned": True, **marks}}
    assert bool(difference(entries, there, NOTHING)) is differs


def test_a_keys_end_is_told_once() -> None:
    entries = read({"tenants": [{"slug": "acme", "keys": [{"name": "ci", "expires_at": "2030-01-01T00:00:00Z"}]}]})
    there = {("tenants", "", "acme"): {}, ("keys", "acme", "ci"): {"expires_at": None}}
    assert difference(entries, there, NOTHING) == []


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (None, "a mapping with some of: tenants"),
        ([], "a mapping"),
        ({"tenant": []}, "tenant: no such section; there are tenants, hosts"),
        ({"tenants": {"slug": "x"}}, "tenants: it is a list"),
        ({"tenants": ["x"]}, "tenants[0]: it is an object"),
        ({"tenants": [{"name": "x"}]}, "tenants[0].slug: say how it is called"),
        ({"tenants": [{"slug": 1}]}, "tenants[0].slug: it is a text"),
        ({"tenants": [{"slug": "x", "nmae": "X"}]}, "tenants[0].nmae: no such field; a tenant has slug, name"),
        ({"tenants": [{"slug": "x"}, {"slug": "x"}]}, "tenants[1]: tenant x stands at tenants[0] already"),
        (
            {"tenants": [{"slug": "x", "limits": [{"kind": "concurrency", "value": 1, "set_by": "me"}]}]},
            "limits[0].set_by: it is one of operator, tenant",
        ),
        (
            {"tenants": [{"slug": "x", "limits": [{"kind": "concurrency", "value": True}]}]},
            "limits[0].value: it is a who",
        ),
        ({"models": [{"slug": "x", "name": None}]}, "models[0].name: it is a text"),
        ({"deployments": [{"name": "x", "options": []}]}, "deployments[0].options: it is values by name"),
        ({"deployments": [{"name": "x", "options": {"a": float("nan")}}]}, "numbers are finite"),
        ({"deployments": [{"name": "x", "options": {"a": [datetime.date(2030, 1, 1)]}}]}, "a date cannot be sent"),
        ({"deployments": [{"name": "x", "options": {1: 2}}]}, "names are texts"),
        ({"pools": [{"slug": "x", "price": {"alpha": "abc"}}]}, "pools[0].price: alpha: it is a number"),
        ({"pools": [{"slug": "x", "price": {"delta": 1}}]}, "delta: no such part; there are base, alpha"),
        ({"pools": [{"slug": "x y"}]}, "pools[0].slug: letters, digits"),
        ({"deployments": [{"name": "x", "is_enabled": "no"}]}, "deployments[0].is_enabled: it is true or false"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(document: Any, words: str) -> None:
    (problem,) = wrong(document)
    assert words in problem


def test_all_that_is_wrong_is_told_at_once() -> None:
    assert len(wrong({"models": [{"slug": 1}, {"slug": "x", "what": 1}], "people": []})) == 3


def test_the_document_that_is_read_stays_as_it_was() -> None:
    before = repr(WHOLE)
    read(WHOLE)
    assert repr(WHOLE) == before


@pytest.mark.parametrize(
    ("document", "there", "words"),
    [
        ({"hosts": [{"name": "rack-1"}]}, {}, "hosts enrol themselves"),
        ({"pools": [{"slug": "x", "model": "m"}]}, {}, "pools[0].hardware_type: a new pool needs it"),
        (
            {"pools": [{"slug": "x", "model": "m", "hardware_type": "none"}]},
            {},
            "pools[0].hardware_type: no hardware type is called 'none'",
        ),
        ({"deployments": [{"name": "c", "pool": "gone"}]}, {}, "deployments[0].pool: no pool is called 'gone'"),
        (
            {"deployments": [{"name": "c", "pool": "m"}]},
            {("deployments", "", "c"): {"pool": "p"}},
            "deployments[0].pool: it is 'p' and cannot be changed; make another deployment",
        ),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_done(document: Any, there: Any, words: str) -> None:
    with pytest.raises(ManifestError, match=r".") as caught:
        difference(read(document), there, {"models": {"m"}, "pools": {"m"}})
    (problem,) = caught.value.problems
    assert words in problem
