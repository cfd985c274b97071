"""What a study needs before its first run starts: images of one's own, decoded, and enough of them."""

from pathlib import Path

from mae_core.data.images import load
from mae_core.errors import MissingDataError, ParameterError
from mae_core.study.study import Study


def prepare_images(study: Study) -> None:
    """Decode the images of a study's folders once, so that a file that cannot be read starts no run.

    Raises:
        ParameterError: if an image cannot be decoded, a class is empty, a link leads out, or a batch exceeds the data.
    """
    largest: dict[tuple[str, int, int, int], int] = {}  # batch of each kind of data
    for case in study.all_cases:
        for stage in study.stages(case):
            run = study.run(case, study.seeds[0], stage)
            if run.dataset == "folder":
                kind = (run.data_dir, run.image_size, run.train_images, run.holdout)
                largest[kind] = max(largest.get(kind, 0), run.batch_size)
    for (data_dir, image_size, limit, holdout), batch_size in largest.items():
        try:
            train = load("folder", Path(data_dir), True, limit, image_size, holdout)
            load("folder", Path(data_dir), False, 0, image_size, holdout)
        except MissingDataError as error:
            raise ParameterError(str(error)) from error
        if batch_size > len(train):
            raise ParameterError(f"batch_size is {batch_size}: there are only {len(train)} training images in {data_dir}")
