"""One file per verb. Each has one function that does the work; `cli` parses and calls it."""
