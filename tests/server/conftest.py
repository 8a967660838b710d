"""Fixtures of the server's tests."""

import pytest
from fake_server import Server


@pytest.fixture
def server() -> Server:
    return Server()
