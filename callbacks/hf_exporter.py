"""HFExporter: the best and the last policy as ordinary Hugging Face folders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from callbacks.model_card import Figures, model_card
from rlif_lightning.evaluation.label_checks import environment_uses, label_uses
from rlif_lightning.evaluation.report import Report
from rlif_lightning.model.export import CARD, MADE_BY, write_model
from rlif_lightning.module import RLIFModule
from rlif_lightning.parallel.fsdp import whole_state_dict
from rlif_lightning.processes.collectives import all_process_attempt
from rlif_lightning.running.best_value import KeepsBest
from rlif_lightning.running.leftovers import EXPORTS, remove_half_written
from rlif_lightning.running.own_files import OwnFiles, own_files
from rlif_lightning.running.run_folder import check_place
from rlif_lightning.whole_files import replaced

DTYPES = ("float32", "bfloat16", "float16")


class HFExporter(KeepsBest, Callback):
    """Writes ``last`` at the end of training and, with ``monitor``, the ``best`` policy.

    ``best`` is written after each evaluation that is better than all before.

    A folder holds config.json, generation_config.json, model.safetensors and the tokenizer, which
    is what ``AutoModelForCausalLM.from_pretrained`` reads; it is the layout that vLLM documents for
    a local model (its CPU build loaded one, by hand). A LoRA policy is written as adapters alone,
    which name their base model, unless ``merge_lora``. A folder is written under a temporary name
    and renamed, so a reader never sees half of one.

    README.md is a model card: base model, rewards, data, recipe, versions, whether gold answers
    reached the weights, and the figures of an evaluation of these very weights with their
    intervals. The evaluation that follows training is added to the card of ``last``.

    Sharded parameters are gathered, and rank 0 writes.

    Args:
        folder: where the folders go; null = ``export`` in the run's folder. A run that is resumed
            with ``auto`` or ``last`` keeps its best there. A folder that this run did not write is
            not replaced.
        monitor, mode: as for :class:`KeepsBest`; read after each evaluation inside the run.
        last: write the policy that training ends with.
        merge_lora: add the adapters to the weights and write a whole model.
        dtype: of the floating-point weights, float32 | bfloat16 | float16; null = as they are
            trained.

    Raises:
        ValueError: a setting that is unknown or leaves nothing to do.
    """

    def __init__(
        self,
        folder: str | None = None,
        monitor: str | None = None,
        mode: str = "max",
        last: bool = True,
        merge_lora: bool = False,
        dtype: str | None = None,
    ):
        super().__init__(monitor, mode)
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is unknown; use one of {', '.join(DTYPES)}, or null")
        if not last and monitor is None:
            raise ValueError(
                "last=false without monitor leaves nothing to export; set monitor or take the"
                " callback out"
            )
        self.folder, self.last = folder, last
        self.merge_lora, self.dtype = merge_lora, dtype
        self.start: Figures = {}  # what the starting policy measured
        self.uses: list[str] = []  # how gold answers reached the weights
        self.written: dict[str, int] = {}  # name of an export -> its rollouts
        self.measured: tuple[int, Report | None] = (0, None)  # the newest evaluation's rollouts
        self.own: OwnFiles | None = None
        self.run: str | None = None  # that the best so far is of; None = this one

    def setup(self, trainer: Trainer, pl_module: RLIFModule, stage: str) -> None:
        """Find the folder (a collective), and refuse settings that could do nothing."""
        if stage != "fit" and not pl_module.fits_next:
            return
        given = self.folder and check_place("HFExporter.folder", self.folder)
        self.own = own_files(trainer)
        self.root = given or self.own.folder / "export"
        if self.monitor is not None and trainer.limit_val_batches == 0:
            raise ValueError(
                f"monitor={self.monitor!r} is read after evaluations, and"
                " trainer.limit_val_batches=0 makes none; evaluate, or set monitor to null"
            )
        if self.merge_lora and pl_module.policy_settings.lora is None:
            raise ValueError("merge_lora=true, but model.policy.lora is null; take one of them out")

    def on_train_start(self, trainer: Trainer, pl_module: RLIFModule) -> None:
        """Refuse to replace what is not this run's, and remove half-written exports.

        The best of another run, from whose checkpoint this one goes on, is no best of this one.

        Raises:
            ValueError: names the folder and the remedy.
        """
        assert self.own is not None
        if self.run not in (None, self.own.run):
            self.best = None
        for name in (["best"] if self.monitor else []) + (["last"] if self.last else []):
            path = self.root / name
            if (
                self.folder is not None
                and os.path.lexists(path)
                and made_by(path) != _maker(self.own, self.root)
            ):
                raise ValueError(
                    f"HFExporter.folder={self.folder!r} has {name!r} already, and it is not from"
                    " this run; give another folder, or move that one away"
                )
            if trainer.is_global_zero and self.folder is not None and os.path.lexists(path):
                remove_half_written(self.root, EXPORTS)
        self._note_uses(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: RLIFModule) -> None:
        """Write ``best`` where the monitored figure is better than ever before."""
        if trainer.sanity_checking:
            return
        if not int(pl_module.num_rollouts):
            self.start = pl_module.report.as_dict()
        self.measured = int(pl_module.num_rollouts), pl_module.report
        if trainer.state.fn == "validate":
            self._renew_cards(trainer, pl_module)
        if self.monitor is None or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"monitor={self.monitor!r} was not logged; known:"
                f" {', '.join(sorted(trainer.callback_metrics))}"
            )
        # The value is reduced over ranks, so all ranks decide alike.
        value = float(trainer.callback_metrics[self.monitor])
        if self.is_better(value):
            self.best = value
            self._export(trainer, pl_module, "best")

    def on_train_end(self, trainer: Trainer, pl_module: RLIFModule) -> None:
        """Write ``last``.

        Raises:
            RuntimeError: ``monitor`` was set and no evaluation took place.
        """
        if self.last:
            self._export(trainer, pl_module, "last")
        if self.monitor is not None and self.best is None:
            raise RuntimeError(
                f"monitor={self.monitor!r}: training ended without an evaluation that logged it as"
                " a number, so there is no `best`; lower trainer.check_val_every_n_epoch or"
                " trainer.val_check_interval"
            )

    def _export(self, trainer: Trainer, pl_module: RLIFModule, name: str) -> None:
        """Gather on every rank and write on rank 0; all ranks raise a failure."""
        assert pl_module.policy is not None
        assert self.own is not None
        self._note_uses(trainer, pl_module)
        self.written[name] = int(pl_module.num_rollouts)
        policy, weights = pl_module.policy, whole_state_dict(pl_module.policy)
        merged = pl_module.policy_settings if self.merge_lora else None
        maker = _maker(self.own, self.root)

        def write() -> None:
            if trainer.is_global_zero:
                write_model(
                    policy,
                    weights,
                    self.root / name,
                    merged,
                    self.dtype,
                    maker,
                    self._card(trainer, pl_module, name),
                )

        try:
            all_process_attempt(write)
        except Exception as error:  # safetensors has an error class of its own for a full disk
            said = f"{type(error).__name__}: {error}"
            raise RuntimeError(f"HFExporter could not write {self.root / name}: {said}") from error

    def _note_uses(self, trainer: Any, module: RLIFModule) -> None:
        """Remember every use of gold answers: a callback may end one, or a resumed run."""
        found = label_uses(module, callbacks=trainer.callbacks) + environment_uses(module)
        self.uses = list(dict.fromkeys([*self.uses, *found]))

    def _card(self, trainer: Any, module: RLIFModule, name: str) -> str:
        monitor = self.monitor if name == "best" else None
        uses = list(dict.fromkeys([*self.uses, *label_uses(module, monitor, trainer.callbacks)]))
        rollouts, report = self.measured
        found = report.as_dict() if report and rollouts == self.written[name] else {}
        measured = self.start, found
        return model_card(trainer, module, uses, measured, self.merge_lora, self.dtype)

    def _renew_cards(self, trainer: Trainer, module: RLIFModule) -> None:
        """Add an evaluation after training to the cards of the policy that it measured."""
        now = int(module.num_rollouts)
        for name in [name for name, rollouts in self.written.items() if rollouts == now]:
            if trainer.is_global_zero:
                with replaced(self.root / name / CARD) as unfinished:
                    unfinished.write_text(self._card(trainer, module, name), encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far, and what model cards say of the run before."""
        found = {"best": self.best, "start": dict(self.start), "uses": self.uses}
        return found if self.own is None else found | {"run": self.own.run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was made."""
        self.best, self.run = state_dict["best"], state_dict.get("run")
        self.start, self.uses = state_dict.get("start", {}), state_dict.get("uses", [])


def made_by(folder: Path) -> dict[str, str] | None:
    """Return which run wrote an exported folder; None for what no run wrote."""
    try:
        return None if folder.is_symlink() else json.loads((folder / MADE_BY).read_text())
    except (OSError, ValueError):
        return None


def _maker(own: OwnFiles, folder: Path) -> dict[str, str]:
    """Return a run and its path from its export folder.

    A copy of the run that exports to the same folder is another run.
    """
    root = own.folder if own.is_root else own.folder.parent
    return {"run": own.run, "root": os.path.relpath(root.resolve(), folder.resolve())}
