"""An operator who has signed in to the admin."""

from __future__ import annotations

import pytest
from django.test import Client

from tenants.models import User
from tests import factories


@pytest.fixture
def operator(db: None) -> User:
    return factories.user(email="operator@example.org", is_operator=True)


@pytest.fixture
def client(operator: User) -> Client:
    client = Client()
    client.force_login(operator)
    return client
