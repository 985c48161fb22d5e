"""``python -m irlhf``, and the command ``irlhf``."""

import sys

from irlhf.signals import end_at_once


def main() -> int:
    """Run the command line of this process; the exit code."""
    end_at_once()
    from irlhf.cli import main as run  # only now: the imports below it take seconds

    return run()


if __name__ == "__main__":
    sys.exit(main())
