"""Random networks and calls against truths computed apart from the package; ``benchmarks/fuzz.py`` runs them."""
