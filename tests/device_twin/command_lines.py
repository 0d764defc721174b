"""A pytest plugin: whole tests of other files again, with every command line on the device.

``python -m pytest -p device_twin.command_lines tests/test_run.py -k seed`` runs some by hand, with
``tests`` in ``PYTHONPATH``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from device_twin.backend import install

install()  # before any test file is imported


@pytest.fixture(scope="module", autouse=True)
def on_the_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a command line says of its device; the tests of this folder say it themselves."""
    if request.path.parent.name == "device_twin":
        yield
        return
    from rlif_lightning import cli

    whole = cli.main
    given: list[str] = []

    def main(arguments: list[str]) -> cli.RLIFCLI:
        kept = [
            argument for argument in arguments if not argument.startswith("--trainer.accelerator")
        ]
        run = whole([*kept, "--trainer.accelerator=cuda", "--trainer.devices=1"])
        given.append(run.trainer.strategy.root_device.type)
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "main", main)
        yield
    assert given
    assert set(given) == {"cuda"}
