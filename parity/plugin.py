"""A fixture for pytest: `pytest_plugins = ["parity.plugin"]`, then `assert_parity(left, right, batches)` in a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from parity.verdict import Verdict, check


def assert_agreement(*arguments: Any, **keywords: Any) -> Verdict:
    """`parity.check`, which must come to an agreement.

    Raises:
        AssertionError: with the whole verdict.
    """
    verdict = check(*arguments, **keywords)
    if not verdict:
        raise AssertionError(str(verdict))
    return verdict


@pytest.fixture
def assert_parity() -> Callable[..., Verdict]:
    """`assert_agreement`, as a fixture."""
    return assert_agreement
