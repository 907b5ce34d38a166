from .check import CheckedPair as CheckedPair
from .check import CheckReport as CheckReport
from .check import check_dataset as check_dataset
from .dataset import Case as Case
from .dataset import Dataset as Dataset
from .dataset import checksums as checksums
from .dataset import split_validation as split_validation
from .datasets import dataset_name as dataset_name
from .datasets import open_dataset as open_dataset
from .images import list_images as list_images
from .images import read_image as read_image
from .images import read_mask as read_mask
from .images import write_png as write_png
from .intensity import Intensity as Intensity
from .loader import TrainingSet as TrainingSet
from .loader import batches as batches
from .loader import epoch_order as epoch_order
from .masks import MaskRule as MaskRule
from .phantom import Phantom as Phantom
from .phantom import make_phantom as make_phantom
from .phantom import write_phantom_dataset as write_phantom_dataset
from .region import field_of_view as field_of_view
from .region import finds_regions as finds_regions
from .resolution import Resolution as Resolution
from .sample import Sample as Sample
from .transforms import TrainingAugmentation as TrainingAugmentation

__all__ = [
    "Case",
    "CheckReport",
    "CheckedPair",
    "Dataset",
    "Intensity",
    "MaskRule",
    "Phantom",
    "Resolution",
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
