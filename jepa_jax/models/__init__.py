"""The model: X-Encoder, predictor, Y-Encoder and what they are made of."""
