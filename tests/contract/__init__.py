"""What holds for every wrapped backbone."""
