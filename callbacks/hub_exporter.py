"""HubExporter: the exported policy in a repository of the Hugging Face hub as well."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from callbacks.hf_exporter import HFExporter
from rlif_lightning.model.export import CARD, MADE_BY
from rlif_lightning.module import RLIFModule
from rlif_lightning.processes.collectives import all_process_attempt


class HubExporter(HFExporter):
    """Does what :class:`HFExporter` does, and uploads one policy at the end of training.

    That is ``best`` with ``monitor``, otherwise ``last``. The repository is made before the first
    rollout, so that a missing login is found then. The login is that of ``hf auth login`` or the
    variable ``HF_TOKEN``; no setting and no file of the run holds it. An evaluation after training
    uploads the card again. An upload that fails ends the run with an error, after the folder was
    written; the error names the command that repeats it.

    Args:
        repo: the repository, as ``owner/name``.
        public: whether a new repository can be read by everyone.

    Other settings are those of :class:`HFExporter`.

    Raises:
        ValueError: a name without an owner, or settings that :class:`HFExporter` refuses.
    """

    def __init__(self, repo: str, public: bool = False, **settings: Any):
        super().__init__(**settings)
        if len(parts := repo.split("/")) != 2 or not all(parts):
            raise ValueError(f"repo={repo!r} must be owner/name, such as my-name/my-model")
        self.repo, self.public = repo, public
        self.pushed = "last" if self.monitor is None else "best"
        if self.pushed == "last" and not self.last:
            raise ValueError("last=false without monitor leaves nothing to upload; set monitor")

    def on_train_start(self, trainer: Trainer, pl_module: RLIFModule) -> None:
        """Make the repository where it is not there.

        Raises:
            ValueError: the hub is switched off or cannot be reached, or there is no login for it.
        """
        from huggingface_hub import HfApi, constants

        super().on_train_start(trainer, pl_module)
        if constants.HF_HUB_OFFLINE:
            raise ValueError(
                f"HubExporter.repo={self.repo!r} cannot be reached: HF_HUB_OFFLINE is set; unset"
                " it, or use HFExporter"
            )

        def make() -> None:
            if trainer.is_global_zero:
                HfApi().create_repo(self.repo, private=not self.public, exist_ok=True)

        try:
            all_process_attempt(make)
        except Exception as error:  # of the hub, of the network, of a missing login
            raise ValueError(
                f"HubExporter.repo={self.repo!r} cannot be made or written:"
                f" {' '.join(str(error).split()):.300}; log in with `hf auth login` or HF_TOKEN, or"
                " use HFExporter"
            ) from error

    def on_train_end(self, trainer: Trainer, pl_module: RLIFModule) -> None:
        """Write ``last``, and upload."""
        super().on_train_end(trainer, pl_module)
        self._push(trainer, None, f"rollout {self.written.get(self.pushed, 0)}")

    def _renew_cards(self, trainer: Trainer, module: RLIFModule) -> None:
        super()._renew_cards(trainer, module)
        if self.written.get(self.pushed) == int(module.num_rollouts):
            self._push(trainer, [CARD], "evaluation after training")

    def _push(self, trainer: Trainer, only: list[str] | None, message: str) -> None:
        from huggingface_hub import HfApi

        folder = self.root / self.pushed

        def upload() -> None:
            if trainer.is_global_zero:
                HfApi().upload_folder(
                    repo_id=self.repo,
                    folder_path=folder,
                    allow_patterns=only,
                    ignore_patterns=[MADE_BY],
                    commit_message=message,
                )

        try:
            all_process_attempt(upload)
        except Exception as error:
            cause = " ".join(str(error.__cause__ or "").split())
            raise RuntimeError(
                f"HubExporter could not upload to {self.repo!r}: {error} {cause:.300}; the policy"
                f" is in {folder}: repeat with `hf upload {self.repo} {folder}`"
            ) from error
