"""The end-to-end tests of ``test_run.py`` and ``test_configs.py`` again, with every command line on the device."""

from __future__ import annotations

import pytest
from test_configs import (  # noqa: F401
    _in_the_root,
    test_gold_overlay_trains_on_gold_answers_alone,
    test_paper_configs_train_a_stand_in,
    test_quickstart_trains,
    test_smollm2_config_trains_a_stand_in,
)
from test_run import (  # noqa: F401
    reference,
    test_a_head_of_weight_zero_is_measured_and_changes_nothing,
    test_bf16_mixed_sees_each_update,
    test_checkpoints_load_without_running_code,
    test_lora_trains_adapters_only_with_itself_as_reference,
    test_reference_model_starts_at_kl_zero_and_stays_out_of_checkpoints,
    test_resume_in_the_middle_of_an_epoch_is_the_uninterrupted_run,
    test_same_seed_twice_gives_identical_metrics_and_parameters,
    test_training_changes_the_parameters,
)

from rlif_lightning import cli


@pytest.fixture(scope="module", autouse=True)
def on_the_device():
    """Whatever a test's command line says of its device."""
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
