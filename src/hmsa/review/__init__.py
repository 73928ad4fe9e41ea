"""What an auto-labelled folder is worth, and the loop in which people mend it."""
