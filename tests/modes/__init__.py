"""What a model gets back exactly."""
