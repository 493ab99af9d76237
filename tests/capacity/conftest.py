"""What is for sale in these tests."""

from __future__ import annotations

import pytest

from capacity.models import Pool
from tests import selling


@pytest.fixture
def pool(db: None) -> Pool:
    """Four replicas of 100 MU/min at most, one of them spare: 300 MU/min can be sold."""
    selling.host("node-1")
    made = selling.pool()
    selling.serve(made)
    return made
