"""A finished run as the teacher of another training (distillation; Hinton et al., 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from d2ed2q.data import Case, checksums
from d2ed2q.ensemble import learner_probabilities, one_hot_of
from d2ed2q.errors import ConfigError, RunFolderError
from d2ed2q.recipes.card import ModelCard
from d2ed2q.recipes.run_data import seen_images
from d2ed2q.recipes.run_folder import RunFolder

__all__ = ["Teacher", "record_teacher", "require_unseen"]


class Teacher:
    """Mixes labels with what the teacher's learners say on average.

    Args:
        run: the teacher's run, finished.
        card: of the model that learns.
        share: of the teacher in what is learned, 0…1; the rest is the label.
        device: where the images are.

    Raises:
        RunFolderError: the run has not finished.
        CheckpointError: its weights cannot be used.
        ConfigError: it sees images in another way than the model that learns.
    """

    def __init__(self, run: RunFolder, card: ModelCard, share: float, device: torch.device) -> None:
        own = run.read_card()
        for name in ("in_channels", "classes", "dims", "resolution", "intensity", "standardize"):
            theirs, ours = getattr(own, name), getattr(card, name)
            if theirs != ours:
                raise ConfigError(
                    f"the teacher {run.path} has {name.replace('_', ' ')} {theirs}, but what learns from it has "
                    f"{ours}; train both in the same way"
                )
        self.path, self.sha256 = run.path, own.sha256[run.model.name]
        self.seen = seen_images(run)
        self.share = share
        self.ensemble = run.load().to(device).requires_grad_(False)

    @torch.no_grad()
    def target(self, image: Tensor, label: Tensor) -> Tensor:
        """What is to be learned in place of the label.

        Args:
            image: ``B×C×*spatial`` in [0, 1].
            label: ``B×*spatial``, class numbers.

        Returns:
            Tensor: ``B×classes×*spatial``, probabilities (of the foreground in a binary task).
        """
        taught = learner_probabilities(self.ensemble(image).logits).mean(0)
        return self.share * taught + (1 - self.share) * one_hot_of(label, taught)


def require_unseen(teacher: Teacher, cases: Sequence[Case]) -> None:
    """Checks that a teacher has seen none of the images that what learns from it will be scored on.

    Args:
        teacher: what it has seen is known.
        cases: test images and the fold that is left out.

    Raises:
        ConfigError: it was trained on some.
        DataError: an image cannot be read.
    """
    known = [id for id, digest in checksums(cases, images=True).items() if digest in teacher.seen]
    if known:
        raise ConfigError(
            f"the teacher {teacher.path} was trained on {len(known)} of the {len(cases)} images that are kept for "
            f"scoring ({known[0]} is one); give both the same seed, folds and fold"
        )


def record_teacher(run: RunFolder, teacher: Teacher | None, start: RunFolder | None = None) -> None:
    """Writes which weights teach, or compares them where a run goes on.

    Args:
        run: the folder.
        teacher: if there is one.
        start: a finished run whose full-precision weights are taken over.

    Raises:
        RunFolderError: the run, or the one that it starts from, was begun with others.
    """
    if teacher is None:
        return
    if start is not None and start.read_json(start.teacher)["sha256"] != teacher.sha256:
        raise RunFolderError(
            f"the weights of the teacher {teacher.path} are not those that {start.path} learnt from; put these back"
        )
    if not run.teacher.exists():
        content = {"run": str(teacher.path), "sha256": teacher.sha256, "seen": sorted(teacher.seen)}
        run.write_json(run.teacher, content)
    elif run.read_json(run.teacher)["sha256"] != teacher.sha256:
        raise RunFolderError(f"the weights of the teacher {teacher.path} are not those that {run.path} was begun with")
