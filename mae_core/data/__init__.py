"""Images on the device, from CIFAR-10's files or drawn by the package."""

from typing import Literal, get_args

FOLDERS = {"shapes": "shapes-2-batches-py", "cifar10": "cifar-10-batches-py"}  # of each data set, within data_dir
Dataset = Literal["shapes", "cifar10"]
Augmentation = Literal["none", "crop-flip"]
DATASETS = get_args(Dataset)
