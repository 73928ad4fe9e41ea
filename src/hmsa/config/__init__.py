"""Every setting once, with type, range, default and help: recipes, and options of verbs."""
