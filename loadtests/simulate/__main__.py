"""`python -m loadtests.simulate`."""

import sys

from loadtests.simulate.cli import main

if __name__ == "__main__":
    sys.exit(main())
