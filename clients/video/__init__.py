"""Videos: read, followed, drawn, several at once."""
