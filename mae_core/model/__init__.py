"""The model: masks, the vision transformer, the masked autoencoder; independent of data, runs and studies."""
