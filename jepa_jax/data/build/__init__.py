"""`python -m jepa_jax.data.build`: any source of records to a TFDS dataset, on Apache Beam."""
