"""A stand-in for the loops' usage writer: the same order and rules, in memory."""

from __future__ import annotations

import json

from serving.gateway.state import connect


class Books:
    """Takes entries in order; ``rows``: id → (admit, end) as JSON objects; ``doubles`` counts ids that came again."""

    def __init__(self, url):
        self.client = connect(url)
        self.rows = {}
        self.doubles = 0
        self.sequence = {}
        self.watermark = {}
        self.closed = set()
        self.gaps = 0
        self.batches = 0

    def write(self, count=100):
        entries = self.client.xrange("penstock:usage", count=count)
        for entry, fields in entries:
            self.batches += 1
            batch = json.loads(fields[b"b"])
            segment = batch["segment"]
            for admit, end in batch.get("pairs", ()):
                assert admit["id"] == end["id"]
                if admit["id"] in self.rows:
                    self.doubles += 1
                    assert self.rows[admit["id"]] == (admit, end), "the same request with other figures"
                else:
                    assert end["at"] >= self.watermark.get(segment, 0.0), "it ended before the segment's watermark"
                self.rows.setdefault(admit["id"], (admit, end))
            known = self.sequence.setdefault(segment, 0)
            if batch["sequence"] > known + 1:
                self.gaps += 1
            else:
                self.sequence[segment] = max(known, batch["sequence"])
                self.watermark[segment] = max(self.watermark.get(segment, 0.0), batch["watermark"])
                if batch.get("closed"):
                    self.closed.add(segment)
            self.client.set(f"penstock:usage:ack:{segment}", self.sequence[segment])
            self.client.xdel("penstock:usage", entry)
        return len(entries)
