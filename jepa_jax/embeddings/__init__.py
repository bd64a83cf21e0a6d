"""Collections of videos as embeddings: Parquet parts, and an index to search them."""
