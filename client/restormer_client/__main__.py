"""``python -m restormer_client`` is ``restormer-client``."""

import sys

from restormer_client.cli import main

sys.exit(main())
