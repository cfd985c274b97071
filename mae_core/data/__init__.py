"""Images on the device, from CIFAR-10's files or drawn by the package."""

FOLDERS = {"shapes": "shapes-2-batches-py", "cifar10": "cifar-10-batches-py"}  # of each data set, within data_dir
DATASETS = tuple(FOLDERS)
AUGMENTATIONS = ("none", "crop-flip")
