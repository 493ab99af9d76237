"""API keys as text, and what may stand in their lists."""

from __future__ import annotations

import hashlib
import hmac

from hypothesis import given
from hypothesis import strategies as st

from tenants.keys import (
    current_pepper,
    key_digest,
    key_make,
    key_matches,
    key_parse,
    name_errors,
    network_errors,
    scope_errors,
)


def test_a_new_key_reads_back() -> None:
    made = key_make()
    assert str(made) == f"mu_{made.public_id}_{made.secret}"
    assert str(made).count("_") == 2, "the parts hold none, so that a text is parsed without doubt"
    assert key_parse(str(made)) == made
    assert len({str(key_make()) for _ in range(200)}) == 200


@given(st.text(max_size=80))
def test_any_text_is_parsed_without_an_error(text: str) -> None:
    parsed = key_parse(text)
    assert parsed is None or str(parsed) == text


def test_the_digest_is_hmac_sha256_under_the_pepper() -> None:
    expected = hmac.new(b"pepper", b"secret", hashlib.sha256).hexdigest()
    assert key_digest("secret", "pepper") == expected
    peppers = {1: "another", 2: "pepper"}
    assert key_matches("secret", expected, 2, peppers)
    assert not key_matches("secret", expected, 1, peppers)
    assert not key_matches("Secret", expected, 2, peppers)
    assert not key_matches("secret", expected, 3, peppers), "a pepper that was taken away lets nobody in"


def test_the_newest_pepper_signs() -> None:
    assert current_pepper({1: "old", 3: "new", 2: "middle"}) == (3, "new")


def test_bad_lists_say_what_to_do() -> None:
    assert "at least one" in scope_errors([])[0]
    assert "inference" in scope_errors(["inference", "root"])[0]
    assert scope_errors(["inference", "usage"]) == []
    assert "192.0.2.0/24" in network_errors(["everywhere"])[0]
    assert network_errors(["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"]) == []
    assert network_errors(["10.0.0.1/8"])
    assert network_errors([1, None]) == [
        "1 is not a network: write for example 192.0.2.0/24 or 2001:db8::/32.",
        "None is not a network: write for example 192.0.2.0/24 or 2001:db8::/32.",
    ]
    assert name_errors("demo")
    assert name_errors(["demo"]) == []


def test_lists_are_bounded_as_each_gateway_keeps_them() -> None:
    networks = [f"2001:db8:{number:x}::/48" for number in range(101)]
    assert network_errors(networks[:100]) == []
    assert network_errors(networks) == ["A key names at most 100 networks; these are 101."]
    models = [f"model-{number}" for number in range(201)]
    assert name_errors(models[:200]) == []
    assert name_errors(models) == ["A key names at most 200 models; these are 201."]
    assert name_errors(["x" * 200]) == []
    assert "at most 200 characters" in name_errors(["x" * 201])[0]
    assert "no NUL" in name_errors(["demo\0"])[0]
    assert scope_errors(["inference", "usage", "manage"]) == []
    assert scope_errors(["inference"] * 4) == ["Name each scope once: there are 3."]
