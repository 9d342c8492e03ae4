"""Synthetic brain MRI: arrays in, arrays out. No module here knows a path of the repository."""

import synthmri.torchvision_cpu  # noqa: F401  must run before anything imports torchvision
