"""The article's tables and figures in small: `make reproduce`, or `python -m examples.reproduction.small`."""
