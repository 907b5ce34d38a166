from .check import CheckedPair as CheckedPair
from .check import CheckReport as CheckReport
from .check import check_dataset as check_dataset
from .dataset import Case as Case
from .dataset import Dataset as Dataset
from .dataset import checksums as checksums
from .dataset import checksums_both as checksums_both
from .dataset import split_folds as split_folds
from .dataset import split_validation as split_validation
from .datasets import dataset_name as dataset_name
from .datasets import open_dataset as open_dataset
from .fingerprint import ClassShape as ClassShape
from .fingerprint import Fingerprint as Fingerprint
from .fingerprint import evenly_spread as evenly_spread
from .fingerprint import fingerprint as fingerprint
from .images import list_images as list_images
from .images import list_unread as list_unread
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
from .reading import Channels as Channels
from .reading import read_channels as read_channels
from .region import field_of_view as field_of_view
from .region import finds_regions as finds_regions
from .region import region_of_input as region_of_input
from .resampling import resize_linear as resize_linear
from .resolution import Resolution as Resolution
from .sample import Sample as Sample
from .transforms import TrainingAugmentation as TrainingAugmentation
from .volumes import Volume as Volume
from .volumes import is_volume as is_volume
from .volumes import list_volumes as list_volumes
from .volumes import read_volume as read_volume
from .volumes import volume_name as volume_name
from .volumes import write_volume as write_volume

__all__ = [
    "Case",
    "Channels",
    "CheckReport",
    "CheckedPair",
    "ClassShape",
    "Dataset",
    "Fingerprint",
    "Intensity",
    "MaskRule",
    "Phantom",
    "Resolution",
    "Sample",
    "TrainingAugmentation",
    "TrainingSet",
    "Volume",
    "batches",
    "check_dataset",
    "checksums",
    "checksums_both",
    "dataset_name",
    "epoch_order",
    "evenly_spread",
    "field_of_view",
    "finds_regions",
    "fingerprint",
    "is_volume",
    "list_images",
    "list_unread",
    "list_volumes",
    "make_phantom",
    "open_dataset",
    "read_channels",
    "read_image",
    "read_mask",
    "read_volume",
    "resize_linear",
    "split_folds",
    "split_validation",
    "volume_name",
    "write_phantom_dataset",
    "write_png",
    "write_volume",
]
