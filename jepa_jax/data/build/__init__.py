"""`python -m jepa_jax.data.build`: any source of records to a TFDS dataset, on Apache Beam."""

# Of Beam's runners, the one for this machine.
DIRECT_RUNNER = "DirectRunner"
