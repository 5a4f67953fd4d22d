"""`python -m engine`: all that the pages can do, from a terminal."""

import os
import sys

from engine.cli.main import main
from engine.settings import QUIET_THREADS

if __name__ == "__main__":
    for name, value in QUIET_THREADS.items():
        os.environ.setdefault(name, value)
    sys.exit(main())
