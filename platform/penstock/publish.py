"""The publisher: builds snapshot records from the models and applies them to the shared state, in order."""


def nudge() -> None:
    """Publish soon, after a commit, in this process. Never raises: what fails is mended by the 1 s tick."""
    raise NotImplementedError


def publish_pending() -> int:
    """Publish what changed since the last time; the number of records sent. Run it each second."""
    raise NotImplementedError


def publish_all() -> int:
    """Rebuild the whole snapshot (state empty or different); the number of records."""
    raise NotImplementedError
