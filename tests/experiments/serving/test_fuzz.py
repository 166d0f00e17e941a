"""Requests made of the server's own OpenAPI schema: whatever they say, none is answered with 500.

More of them: SCHEMATHESIS_EXAMPLES=500 pytest tests/experiments/serving/test_fuzz.py
"""

from __future__ import annotations

import os

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode

from tests.support.server import MODEL

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", 6))


@pytest.fixture
def schema(server):
    loaded = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    loaded.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
    return loaded


operations = schemathesis.pytest.from_fixture("schema")


@operations.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES < 100,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
def test_nothing_makes_the_server_fail(case):
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % 2:
        case.body = body | {"model": MODEL, "max_tokens": 2}  # past the name of the model
    case.call_and_validate(checks=[not_a_server_error], timeout=300)  # the first ones compile
