"""README and docs: what they name exists, and what they show runs."""
