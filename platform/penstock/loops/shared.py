"""The loops' connection to the shared state, and the counters that operators may ask for."""

from serving.shared_state import client as client


def count(name: str, reason: str, amount: int = 1) -> None:
    """Add to the counter ``reason`` of the hash ``penstock:count:<name>``."""
    client().hincrby(f"penstock:count:{name}", reason, amount)
