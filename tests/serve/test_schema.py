"""Schemathesis makes up requests by the OpenAPI document: no server error, no answer that it does not tell of."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from openm6.decode import live
from openm6.decode import pipeline as module
from openm6.decode.pipeline import Pipeline
from openm6.serve.app import create_app
from openm6.serve.engine import Engine
from openm6.serve.settings import Settings
from openm6.serve.shop import Shop
from tests.serve.conftest import EchoWriter

schemathesis = pytest.importorskip("schemathesis", reason="requests are made up by schemathesis")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
]


@pytest.fixture(scope="module")
def document(m6: Pipeline, shop: Shop):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "MAX_POEM", 4)
        patch.setattr(module, "MAX_TEXT", 3)
        app = create_app(Engine(m6, Settings(hosts=frozenset({"*"})), shop=shop, writer=EchoWriter()))
        yield schemathesis.openapi.from_asgi("/openapi.json", app)


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_no_request_makes_a_server_error(case) -> None:
    case.call_and_validate(checks=schemathesis.checks.CHECKS.get_by_names(CHECKS))
