"""One pass over a labelled split: every fusion, every score."""
