"""The simulated engine: vLLM's API over HTTP from a cost profile, without a model. Labelled wherever it appears.

One asyncio process: ``__main__`` (command line) → ``server`` (HTTP) → ``api`` (bodies and events) → ``engine`` (time,
faults) → ``scheduler`` (steps, batch, KV cache), with ``tokenizer``, ``metrics`` and ``requestlog`` beside them.
"""
