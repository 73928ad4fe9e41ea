"""Labels for many images: auto-labelling, review by people, rounds of self-training."""
