"""What a model is in for a while and gets back exactly: flags, random states, everything it holds."""
