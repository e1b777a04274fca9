"""How wrapped models are kept: in a folder, or in a repository of the Hugging Face hub."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from tempfile import TemporaryDirectory

from exitkit.errors import ConfigError
from exitkit.persistence.folder import replaced
from exitkit.persistence.hub import upload
from exitkit.persistence.weights import BACKBONE
from exitkit.persistence.write import FILES, Exits, write_components


class Keeping(ABC):
    """What can be saved: exits of one backbone, or of several by component name."""

    @abstractmethod
    def _exits(self) -> Exits | dict[str, Exits]:
        """What is saved."""

    def save_pretrained(self, path: str | Path) -> None:
        """Writes heads, config, policy, its calibration, the backbone's fingerprint and a model card.

        The folder is written beside the old one and takes its place at the end: whatever happens, the old
        one or the new one is there, whole. Other files in it stay. Of several denoisers, each has a folder
        of its name in it.

        Arguments:
            path: Folder; made if it is not there. A fine-tuned backbone is written too.

        Raises:
            CheckpointError: If it cannot be written.
        """
        exits = self._exits()
        names = FILES if isinstance(exits, Exits) else (*FILES, *exits)
        with replaced(path, names) as folder:
            if isinstance(exits, Exits):
                exits.write(folder)
            else:
                write_components(folder, exits)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        include_backbone: bool = False,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Save exits",
    ) -> str:
        """Saves the exits to a repository of the Hugging Face hub; a backbone only if that is asked for.

        Arguments:
            repo_id: Name of the repository, owner/name; made if it is not there.
            include_backbone: Whether the weights of a backbone that was trained with its exits are uploaded.
            private: Whether a new repository is private; as its owner's settings say if None.
            token: Of the hub; the one that was logged in with if None.
            revision: Branch to commit to; the main branch if None.
            commit_message: What the commit says.

        Returns:
            Address of the commit.

        Raises:
            ConfigError: If `include_backbone` does not fit how the exits were fitted.
            CheckpointError: If the hub refuses.
        """
        exits = self._exits()
        parts = [exits] if isinstance(exits, Exits) else list(exits.values())
        trained = any(part.config.loss.train_backbone for part in parts)
        kind = type(parts[0].backbone).__name__
        if trained and not include_backbone:
            raise ConfigError(
                f"push_to_hub: the weights of this {kind} were trained with its exits (preset "
                f"{parts[0].config.preset!r}), which fit no other ones. Pass include_backbone=True to upload "
                f"them too, as {BACKBONE}, if the base's licence allows it; or keep both with "
                "model.save_pretrained(path)."
            )
        if include_backbone and not trained:
            raise ConfigError(
                f"push_to_hub: this {kind} was not trained with its exits, so its weights are those of its "
                "base, which are not uploaded again. Leave include_backbone=True out."
            )
        with TemporaryDirectory() as place:
            self.save_pretrained(Path(place) / "exits")
            return upload(
                Path(place) / "exits",
                repo_id,
                private=private,
                token=token,
                revision=revision,
                commit_message=commit_message,
            )
