"""`python -m engine`: all that the pages can do, from a terminal."""

import os
import sys
import warnings

from engine.cli.main import main
from engine.settings import THREADS

if __name__ == "__main__":
    # Libraries warn their own callers; to whoever types a command it is noise.
    warnings.simplefilter("ignore", FutureWarning)
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    sys.exit(main())
