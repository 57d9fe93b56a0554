"""``python -m specreg`` is the ``specreg`` command."""

import sys

from specreg.cli import main

if __name__ == "__main__":
    sys.exit(main())
