"""The cut: gated blocks, one forward with exits, the state across steps, and its accounts."""
