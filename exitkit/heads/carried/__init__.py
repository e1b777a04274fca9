"""Carried exits: what the skipped blocks did in the last full steps, extrapolated and corrected."""
