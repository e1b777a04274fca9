"""The article: its tables in small, the real scale, and the networks of both."""
