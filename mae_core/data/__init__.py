"""Images on the device, from CIFAR-10's files or drawn by the package."""

from typing import Literal, get_args

Dataset = Literal["shapes", "cifar10"]
Augmentation = Literal["none", "crop-flip"]
DATASETS = get_args(Dataset)


def folder_of(dataset: str, image_size: int = 32) -> str:
    """The folder of a data set within ``data_dir``; shapes of another size than 32 pixels have one of their own."""
    size = "" if image_size == 32 else f"-{image_size}"
    return {"shapes": f"shapes-2{size}-batches-py", "cifar10": "cifar-10-batches-py"}[dataset]
