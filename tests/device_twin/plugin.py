"""For ``pytest -p device_twin.plugin``: the twin is there before any test file is imported."""

from device_twin.backend import install

install()
