"""Images in, labels out: predictor, tiles, exported networks, and the files that are written."""
