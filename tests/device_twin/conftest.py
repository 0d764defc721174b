"""A pytest that was asked for this folder has the twin before any test file is imported."""

import pytest

from device_twin.backend import install

install()


@pytest.fixture(scope="module", params=["32-true", "bf16-mixed"])
def precision(request) -> str:
    return request.param
