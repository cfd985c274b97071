"""The entry point of one training process of several (see processes.py): arguments are the stage and parameters as JSON."""

import json
import os
import signal
import sys
from typing import Any


def main() -> None:
    """Train; an error goes to the launcher, which reports it once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until training has begun, Ctrl-C ends it without a word
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from mae_core.study.parameters import FinetuneParameters, PretrainParameters
    from mae_core.training import runs

    stage, values = sys.argv[1:]
    kind: Any = {"pretrain": PretrainParameters, "finetune": FinetuneParameters}[stage]
    code = 0
    try:
        getattr(runs, stage)(kind.check(json.loads(values)))
    except BaseException as error:
        get_error_handler().record_exception(error)
        code = 1
    sys.stdout.flush()
    os._exit(code)  # without the end of a normal exit, which would discard the checkpoints


if __name__ == "__main__":
    main()
