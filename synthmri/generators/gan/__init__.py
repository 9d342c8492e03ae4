"""What the two GANs share: their networks, how two players train, and the augmentation that both see."""
