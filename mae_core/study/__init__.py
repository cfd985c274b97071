"""The books: parameters, study files, results on disk, and where they came from."""
