"""Entry point: ``python -m restormer_client`` runs ``restormer-client``."""

import sys

from restormer_client.cli import main

sys.exit(main())
