"""Exits on disk: heads, config, policy, and the fingerprint that ties them to a backbone."""
