"""Parameters, study files, results on disk, and their provenance."""
