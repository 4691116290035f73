"""`torchrun --nproc-per-node 4 -m testbed.trainer --config FILE`: one arm on real machines, or on one."""

import os
import sys

from testbed.commandline import parse
from testbed.config.training import Train
from testbed.errors import RunFailed, UsageError, in_words


def main() -> int:
    """0 done, 1 failed, 2 bad usage."""
    from testbed.trainer.launch import train

    try:
        return train(parse(Train, sys.argv[1:], prog="python -m testbed.trainer"))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except RunFailed as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:  # of files; a connection's is a RunFailed
        print(f"rank {os.environ.get('RANK')}: {in_words(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
