"""Fixtures of the server's tests."""

import pytest
from app_under_test import Server


@pytest.fixture
def server() -> Server:
    return Server()
