"""Print the flat parameters of one run of a study, as YAML for ``papermill -f``:

python -m mae_core params/paper.yaml block-50 0 pretrain > run.yaml
"""

import argparse

import yaml

from mae_core.errors import ParameterError
from mae_core.study.study import STAGES, Study


def main() -> None:
    """Read the command line, check the study, print the run's parameters."""
    parser = argparse.ArgumentParser(prog="python -m mae_core", description=__doc__.splitlines()[0])
    parser.add_argument("file", help="a study, such as params/paper.yaml")
    parser.add_argument("case", help="one of its cases, such as random-75")
    parser.add_argument("seed", type=int, help="one of its seeds, such as 0")
    parser.add_argument("stage", choices=list(STAGES))
    words = parser.parse_args()
    try:
        run = Study.read(words.file).run(words.case, words.seed, words.stage)
    except ParameterError as error:
        raise SystemExit(f"ParameterError: {error}") from error
    print(yaml.safe_dump(run.flat(), sort_keys=False), end="")


if __name__ == "__main__":
    main()
