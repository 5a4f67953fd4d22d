"""`python -m engine`: all that the pages can do, from a terminal."""

import sys

from engine.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
