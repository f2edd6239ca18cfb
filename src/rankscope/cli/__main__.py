"""``python -m rankscope.cli``, where the script is not on the path."""

import sys

from rankscope.cli.main import main

sys.exit(main())
