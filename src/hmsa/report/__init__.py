"""Arrays and numbers in; pictures, charts and offline HTML pages out. Runs no network."""
