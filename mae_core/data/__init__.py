"""Images: data sets that the package draws, downloads or reads from a folder, in memory or memory-mapped."""

from typing import Literal, get_args

Dataset = Literal["shapes", "cifar10", "cifar100", "folder"]
Augmentation = Literal["none", "crop-flip"]
Place = Literal["auto", "device", "host"]
DATASETS = get_args(Dataset)


def folder_of(dataset: str, image_size: int = 32) -> str:
    """The folder of a data set within ``data_dir``; shapes of another size than 32 pixels have one of their own."""
    size = "" if image_size == 32 else f"-{image_size}"
    named = {"shapes": f"shapes-2{size}-batches-py", "cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
    return named.get(dataset, ".")
