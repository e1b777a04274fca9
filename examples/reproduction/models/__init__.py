"""Small reference models (U-ViT, UNet, digit classifier) used by the examples and tests."""
