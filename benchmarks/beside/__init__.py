"""The pieces of ``full_beside_partial.py``: networks, measurements, rows, drops, and the page made of them."""
