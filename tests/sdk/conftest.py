"""The same texts over raw HTTP: what an SDK's vectors are compared with."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.service import ServiceProcess


@pytest.fixture(scope="session")
def raw(service: ServiceProcess) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client
