"""The command line as ``python -m defectcam``."""

import sys

from defectcam.cli import main

if __name__ == "__main__":
    sys.exit(main())
