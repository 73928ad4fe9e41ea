"""Arrays and numbers in; images, charts and offline HTML pages out. Runs no network."""
