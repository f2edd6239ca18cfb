"""What every part stands on: the exception tree, provenance of a result, progress of long work."""
