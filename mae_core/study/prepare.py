"""What a study needs before its first run starts: CIFAR, or images of one's own, decoded; and enough of them."""

from collections.abc import Collection
from pathlib import Path

from mae_core.data.images import load
from mae_core.errors import MissingDataError, ParameterError
from mae_core.study.study import Study


def prepare_images(study: Study, planned: Collection[tuple[str, str]] | None = None) -> None:
    """Download or decode the images of a study once, so that data that are missing or cannot be read start no run.

    Shapes are drawn by the runs.

    Args:
        planned: case and stage of the runs that will train; None: all of the study.

    Raises:
        ParameterError: if a data set cannot be downloaded, a file is damaged or cannot be decoded, a class is empty, a link
            leads out, or a batch exceeds the data.
    """
    largest: dict[tuple[str, str, int, int, int], int] = {}  # batch of each kind of data
    if planned is None:
        planned = [(case, stage) for case in study.all_cases for stage in study.stages(case)]
    for case, stage in planned:
        run = study.run(case, study.seeds[0], stage)
        if run.dataset != "shapes":
            kind = (run.dataset, run.data_dir, run.image_size, run.train_images, run.holdout)
            largest[kind] = max(largest.get(kind, 0), run.batch_size)
    for (dataset, data_dir, image_size, limit, holdout), batch_size in largest.items():
        try:
            train = load(dataset, Path(data_dir), True, limit, image_size, holdout)
            load(dataset, Path(data_dir), False, 0, image_size, holdout)
        except MissingDataError as error:
            raise ParameterError(str(error)) from error
        if batch_size > len(train):
            raise ParameterError(f"batch_size is {batch_size}: there are only {len(train)} training images in {data_dir}")
