"""Everything that the node's OpenAPI page offers, asked for at random: each answer is one that the page announces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from d2ed2q.serve.node import Node
from d2ed2q.serve.settings import HttpSettings


def test_every_answer_is_one_that_was_announced(make_node: Callable[..., Node]) -> None:
    node = make_node(http=HttpSettings(per_minute=1_000_000, names=("testserver",)))
    asked: list[str] = []
    with node.running():
        schema = schemathesis.openapi.from_asgi("/openapi.json", node.app())
        for found in schema.get_all_operations():
            assert isinstance(found, Ok), found
            operation = found.ok()

            @given(case=operation.as_strategy())
            @settings(
                max_examples=20,
                derandomize=True,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def ask(case: Case[Any]) -> None:
                # That bytes are an image, no schema can say.
                case.call_and_validate(excluded_checks=[positive_data_acceptance])

            ask()
            asked.append(operation.label)
    assert {"POST /segment", "GET /v2", "GET /jobs/{job}", "GET /jobs/{job}/{result}"} <= set(asked)
