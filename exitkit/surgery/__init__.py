"""Where to cut: finding the blocks of a backbone and describing them in a frozen plan."""
