"""A pytest that was asked for this folder has the twin before any test file is imported."""

from device_twin.backend import install

install()
