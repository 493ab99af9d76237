"""The KV cache in blocks of 16 tokens, with prefix hits and eviction of the least recently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from worker.simulated.profile import BLOCK


def block_hashes(tokens: Sequence[int], salt: str, known: list[int]) -> list[int]:
    """Extend ``known``, the chain of hashes of the full blocks of ``tokens``, and return it.

    Each hash covers everything before it, and the salt: equal hashes mean an equal prefix of an equal salt.
    """
    previous = known[-1] if known else hash(("salt", salt))
    for start in range(len(known) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
        previous = hash((previous, tuple(tokens[start : start + BLOCK])))
        known.append(previous)
    return known


class Holding:
    """What one sequence holds: hashes of its published blocks in order, and blocks that are still being written."""

    __slots__ = ("open_blocks", "published")

    def __init__(self) -> None:
        self.published: list[int] = []
        self.open_blocks = 0

    @property
    def blocks(self) -> int:
        return len(self.published) + self.open_blocks


class KvCache:
    """Counts blocks. A published block with no user stays for later hits until its place is needed."""

    def __init__(self, blocks: int) -> None:
        self.total = blocks
        self.queries = 0
        self.hits = 0
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._open = 0

    @property
    def usage(self) -> float:
        """Share of blocks in use, 0..1; idle cached blocks count as free."""
        return (len(self._users) + self._open) / self.total

    def lookup(self, hashes: Sequence[int], tokens: int) -> int:
        """Return how many leading blocks of a sequence of ``tokens`` are cached.

        At least its last token is always computed: its output is needed.
        """
        found = 0
        for value in hashes[: (tokens - 1) // BLOCK]:
            if value not in self._users and value not in self._idle:
                break
            found += 1
        return found

    def can_admit(self, hashes: Sequence[int], hit_blocks: int, blocks: int) -> bool:
        """Whether ``blocks`` in all fit, the first ``hit_blocks`` of ``hashes`` being shared."""
        revived = sum(1 for value in hashes[:hit_blocks] if value in self._idle)
        return self._available() - revived >= blocks - hit_blocks

    def admit(self, holding: Holding, hashes: Sequence[int], hit_blocks: int) -> None:
        """Take the first ``hit_blocks`` cached blocks into use."""
        for value in hashes[:hit_blocks]:
            self._use(value)
            holding.published.append(value)

    def grow(self, holding: Holding, tokens: int) -> bool:
        """Give ``holding`` room for ``tokens`` in all; False and nothing done when there is none."""
        missing = -(-tokens // BLOCK) - holding.blocks
        if missing <= 0:
            return True
        if self._available() < missing:
            return False
        for _ in range(missing - self._unused()):
            self._idle.popitem(last=False)
        self._open += missing
        holding.open_blocks += missing
        return True

    def publish(self, holding: Holding, hashes: Sequence[int], computed: int) -> None:
        """Make the blocks that ``computed`` tokens have filled available to others."""
        for value in hashes[len(holding.published) : computed // BLOCK]:
            holding.open_blocks -= 1
            self._open -= 1
            self._use(value)
            holding.published.append(value)

    def release(self, holding: Holding) -> None:
        """Give everything back. The end of a sequence is evicted before its beginning, which others may share."""
        for value in reversed(holding.published):
            left = self._users[value] - 1
            if left:
                self._users[value] = left
            else:
                del self._users[value]
                self._idle[value] = None
        self._open -= holding.open_blocks
        holding.published.clear()
        holding.open_blocks = 0

    def clear_idle(self) -> None:
        """Forget every cached block that nobody uses."""
        self._idle.clear()

    def _unused(self) -> int:
        return self.total - len(self._users) - len(self._idle) - self._open

    def _available(self) -> int:
        return self.total - len(self._users) - self._open

    def _use(self, value: int) -> None:
        self._idle.pop(value, None)
        self._users[value] = self._users.get(value, 0) + 1
