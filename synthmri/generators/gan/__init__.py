"""What the two GANs share: how two players train, and the augmentation that both see."""
