"""The models, one a file: how each is built, trained, loaded and drawn from."""
