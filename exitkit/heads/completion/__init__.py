"""Completion: a whole step of a row from its last full steps, without the backbone."""
