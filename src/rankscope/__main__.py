"""``python -m rankscope``: the command line, also where the script is not on the path, and for torchrun."""

import sys

from rankscope.cli.main import main

sys.exit(main())
