"""Photographs by the million: a Ray Data job whose actors ask Triton through ``restormer_client``.

``python -m bulk enhance --input … --output … --server …``; docs/scaling.md says what to run when.
"""
