"""``python3 -m virt_forward.cli``: the command straight from a checkout."""

import sys

from virt_forward.cli import main

sys.exit(main())
