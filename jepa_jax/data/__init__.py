"""Data: sources, tokenizers and the Grain pipeline that makes batches."""
