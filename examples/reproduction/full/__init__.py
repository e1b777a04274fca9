"""AdaDiff's experiments at their real scale: see README.md."""
