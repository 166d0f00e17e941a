"""Requests made of the server's own OpenAPI schema: whatever they say, none is answered with 500.

More of them: SCHEMATHESIS_EXAMPLES=500 pytest tests/experiments/serving/test_fuzz.py
"""

from __future__ import annotations

import os
from collections import Counter

import hypothesis
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode

from tests.support.server import MODEL

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", 6))


def test_nothing_makes_the_server_fail(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
    asked = Counter()

    def send(case, known):
        body = case.body
        if known and isinstance(body, dict) and isinstance(body.get("model"), str):
            case.body = body | {"model": MODEL, "max_tokens": 2}  # past the name of the model
        case.call_and_validate(checks=[not_a_server_error], timeout=300)  # the first ones compile
        asked[case.operation.label] += 1

    settings = hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=EXAMPLES < 100,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    for operation in (result.ok() for result in schema.get_all_operations()):
        given = hypothesis.given(case=operation.as_strategy(), known=hypothesis.strategies.booleans())
        settings(given(send))()
    assert len(asked) == 12 and asked["POST /v1/chat/completions"] > EXAMPLES / 2
