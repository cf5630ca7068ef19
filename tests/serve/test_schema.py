"""Schemathesis makes up requests by the OpenAPI document: no server error, no answer that it does not tell of."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openm6.decode import live
from openm6.decode.pipeline import Pipeline
from openm6.serve.engine import Engine
from openm6.serve.settings import Settings
from openm6.serve.shop import Shop
from tests import tiny
from tests.serve.conftest import EchoWriter
from tests.serve.test_server import served

schemathesis = pytest.importorskip("schemathesis", reason="requests are made up by schemathesis")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
OPERATIONS = 12
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
]


@pytest.fixture(scope="module")
def document(m6: Pipeline, shop: Shop) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "MAX_POEM", 4)
        tiny.short_texts(patch, 3)
        engine = Engine(m6, Settings(hosts=frozenset({"*"})), shop=shop, writer=EchoWriter())
        with served(engine) as (address, _, _):
            while not engine.status.ready:
                time.sleep(0.01)
            yield schemathesis.openapi.from_url(f"{address}/openapi.json")


def test_no_request_makes_a_server_error(document: Any) -> None:
    modes = schemathesis.GenerationMode
    checks = schemathesis.checks.CHECKS.get_by_names(CHECKS)
    operations = [each.ok() for each in document.get_all_operations()]
    assert len(operations) == OPERATIONS
    for operation in operations:
        fitting = operation.as_strategy(generation_mode=modes.POSITIVE)
        misfit = operation.as_strategy(generation_mode=modes.NEGATIVE)
        # Where nothing can be sent, nothing can be wrong with it.
        sent = operation.body or operation.query
        cases = st.one_of(fitting, misfit) if sent else fitting

        @settings(max_examples=30, deadline=None, suppress_health_check=SLOW)
        @given(case=cases)
        def check(case: Any) -> None:
            case.call_and_validate(checks=checks)

        check()
