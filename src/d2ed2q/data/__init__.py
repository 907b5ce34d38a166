"""Images and masks from the disk to augmented batches, and a built-in phantom that needs no data at all."""

from __future__ import annotations

from d2ed2q.data.check import CheckedPair, CheckReport, check_dataset
from d2ed2q.data.dataset import Case, Dataset, checksums, split_validation
from d2ed2q.data.datasets import dataset_name, open_dataset
from d2ed2q.data.images import list_images, read_image, read_mask, write_png
from d2ed2q.data.loader import TrainingSet, batches, epoch_order
from d2ed2q.data.masks import MaskRule
from d2ed2q.data.phantom import Phantom, make_phantom, write_phantom_dataset
from d2ed2q.data.region import field_of_view, finds_regions
from d2ed2q.data.sample import Sample
from d2ed2q.data.transforms import TrainingAugmentation

__all__ = [
    "Case",
    "CheckReport",
    "CheckedPair",
    "Dataset",
    "MaskRule",
    "Phantom",
    "Sample",
    "TrainingAugmentation",
    "TrainingSet",
    "batches",
    "check_dataset",
    "checksums",
    "dataset_name",
    "epoch_order",
    "field_of_view",
    "finds_regions",
    "list_images",
    "make_phantom",
    "open_dataset",
    "read_image",
    "read_mask",
    "split_validation",
    "write_phantom_dataset",
    "write_png",
]
