"""The article's tables and models."""
