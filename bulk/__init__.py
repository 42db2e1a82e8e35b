"""Enhance millions of photographs: a Ray Data job whose actors call Triton through ``restormer_client``.

Run it as ``python -m bulk enhance --input … --output … --server …``; docs/scaling.md says when to use it.
"""
