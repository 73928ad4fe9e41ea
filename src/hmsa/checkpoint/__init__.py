"""Networks in files: load and save, official checkpoints, networks of other libraries."""
