"""Images and masks from the disk to augmented batches, and a built-in phantom that needs no data at all."""

from __future__ import annotations

from d2ed2q.data.dataset import Case, Dataset, MaskRule, checksums, split_validation
from d2ed2q.data.datasets import open_dataset
from d2ed2q.data.images import list_images, read_image, read_mask, write_png
from d2ed2q.data.loader import TrainingSet, batches, epoch_order
from d2ed2q.data.sample import Sample
from d2ed2q.data.transforms import TrainingAugmentation

__all__ = [
    "Case",
    "Dataset",
    "MaskRule",
    "Sample",
    "TrainingAugmentation",
    "TrainingSet",
    "batches",
    "checksums",
    "epoch_order",
    "list_images",
    "open_dataset",
    "read_image",
    "read_mask",
    "split_validation",
    "write_png",
]
