"""schemathesis on the document that the app serves: no 5xx and nothing that the document denies."""

from __future__ import annotations

import os

from app_under_test import Server
from hypothesis import HealthCheck, settings

from clients.environments import package

schemathesis = package("schemathesis")

# A few in CI; `tests/run.sh fuzz` asks for many.
EXAMPLES = int(os.environ.get("OCTAVO_FUZZ_EXAMPLES", "10"))
SERVER = Server()
SCHEMA = schemathesis.openapi.from_wsgi("/openapi.json", SERVER.app)


@SCHEMA.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_keeps_to_the_document(case) -> None:
    # What a model refuses beyond the form of a request, such as a token id that it does not have,
    # no schema can say: so acceptance of every valid body is not checked.
    excluded = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]
    case.call_and_validate(excluded_checks=excluded)
