"""Training a run: the loop, what it minimizes, how it is computed, how it resumes."""
