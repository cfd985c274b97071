"""Metrics of trained models on the test images: reconstruction, classification, probes, FLOPs."""

N_PICTURES = 10
