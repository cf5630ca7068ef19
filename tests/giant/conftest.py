"""Small random models of both kinds of stack, each with a batch: those of the delinking benchmark."""

from __future__ import annotations

import pytest

from benchmarks.delink import SUBJECTS, Subject

LAYERS = 4


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    """One model of every family."""
    return SUBJECTS[request.param](LAYERS)


@pytest.fixture(params=["m6", "qwen3"])
def giant(request: pytest.FixtureRequest) -> Subject:
    """One model with slots, one with tied layers."""
    return SUBJECTS[request.param](LAYERS)


@pytest.fixture
def m6() -> Subject:
    return SUBJECTS["m6"](LAYERS)


@pytest.fixture
def qwen3() -> Subject:
    return SUBJECTS["qwen3"](LAYERS)
