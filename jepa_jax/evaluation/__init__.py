"""Evaluation: metrics of embeddings, and the tasks that use them."""
