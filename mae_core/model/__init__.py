"""The model on the GPU: masks, the vision transformer, the masked autoencoder.

It knows nothing of data, runs or studies.
"""
