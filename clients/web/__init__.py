"""Pictures by plain HTTP, and a page in the browser: `python -m clients.web`."""
