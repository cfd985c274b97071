"""What a trained model can do: reconstruct, classify, describe; measured on the test images."""

N_PICTURES = 10
