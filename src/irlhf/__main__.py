"""``python -m irlhf``."""

import sys

from irlhf.cli import main

if __name__ == "__main__":
    sys.exit(main())
