"""The same calls against an engine itself and through Penstock, and what may differ between their answers.

A difference that is not listed fails, and so does a listed one that no longer occurs.

The engine does not repeat itself to the letter: the words of random weights hang on the last bit of a logit, which
changes with what else is in the batch and what is cached, and events are merged when the machine is busy. So a pair
that differs is asked for again. A gateway that changed something would change it every time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from tests.e2e.stack import Stack, wait_for

TRIES = 5
TEXTS = {"content", "reasoning_content", "text"}
"""What a chunk has a part of."""
Client = TypeVar("Client")


def address_of(stack: Stack, model: str, *, seconds: float = 900) -> str:
    """The address of a ready replica, once the gateways know it too."""

    def find() -> str:
        rows = stack.rows(
            "select r.address from serving_replica r join serving_deployment d on d.id = r.deployment_id"
            " where d.name = ? and r.state = 'ready'",
            model,
        )
        return str(rows[0]["address"]) if rows else ""

    return wait_for(f"{model} on a real engine", find, seconds=seconds, every=1.0)


def body_of(result: Any) -> Any:
    return json.loads(result.to_json()) if hasattr(result, "to_json") else result


def streamed(events: Any) -> list[Any]:
    with events:
        return [body_of(event) for event in events]


def folded(events: Any) -> Any:
    """A stream in which the chunks of one choice that follow each other are one; anything else as it is."""
    if not isinstance(events, list):
        return events
    found: list[Any] = []
    for event in events:
        if found and _is_continued(found[-1], event):
            found[-1] = _put_together("", found[-1], event)
        else:
            found.append(event)
    return found


def _is_continued(first: Any, second: Any) -> bool:
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return False
    choices = [event.get("choices") or [] for event in (first, second)]
    if [len(each) for each in choices] != [1, 1]:
        return False
    (before,), (after,) = choices
    return before.get("index") == after.get("index") and before.get("finish_reason") is None


def _put_together(name: str, first: Any, second: Any) -> Any:
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, dict):
        return {key: _put_together(key, first.get(key), second.get(key)) for key in {**first, **second}}
    if name == "choices":
        return [_put_together("", first[0], second[0])]
    return first + second if isinstance(first, list) or name in TEXTS else second


def differences(path: str, left: Any, right: Any) -> Iterator[str]:
    """Paths at which two JSON values differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        for name in sorted({*left, *right}):
            yield from differences(f"{path}.{name}", left.get(name), right.get(name))
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            yield from differences(f"{path}[{index}]", a, b)
    elif left != right:
        yield path


def at(value: Any, path: str) -> Any:
    """The part of ``value`` that ``path`` (as ``differences`` writes it) leads to."""
    for name, index in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path):
        if isinstance(value, list):
            value = value[int(index)] if index and int(index) < len(value) else None
        else:
            value = value.get(name) if isinstance(value, dict) else None
    return value


class Comparison(NamedTuple):
    """``justified``: paths by the pattern that allows them; ``unexpected``: both values by path."""

    justified: dict[str, list[str]]
    unexpected: dict[str, tuple[Any, Any]]


def compare(name: str, left: Any, right: Any, reasons: Mapping[str, str]) -> Comparison:
    found = Comparison({}, {})
    for path in differences(name, left, right):
        reason = next((pattern for pattern in reasons if re.match(pattern, path)), None)
        if reason is None:
            found.unexpected[path] = (at(left, path[len(name) :]), at(right, path[len(name) :]))
        else:
            found.justified.setdefault(reason, []).append(path)
    return found


def require_alike(
    calls: Mapping[str, Callable[[Client], Any]],
    direct: Client,
    through: Client,
    reasons: Mapping[str, str],
    *,
    rare: frozenset[str] = frozenset(),
) -> None:
    """Every call answers alike but for ``reasons``; each of these occurs, except those that are ``rare``.

    How many tokens an engine puts into a chunk depends on how busy the machine is: where no try has them alike, the
    chunks of a choice count together.
    """
    unexpected: dict[str, tuple[Any, Any]] = {}
    used: set[str] = set()
    for name, call in calls.items():
        for tries in range(1, TRIES + 1):
            left, right = call(direct), call(through)
            found = compare(name, left, right, reasons)
            if found.unexpected and tries == TRIES:
                found = compare(name, folded(left), folded(right), reasons)
            if not found.unexpected:
                break
            print(f"{name}, try {tries}: {json.dumps(found.unexpected, default=str)[:2000]}")
        unexpected |= found.unexpected
        used |= found.justified.keys()
        for reason, paths in found.justified.items():
            print(f"{', '.join(paths)}: {reasons[reason]}")
    assert not unexpected, json.dumps(
        {path: [str(v)[:300] for v in pair] for path, pair in unexpected.items()}, indent=1
    )
    stale = set(reasons) - used - rare
    assert not stale, f"no longer a difference: {stale}"
