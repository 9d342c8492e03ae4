"""The reader study as it is run: a frozen packet of images, a store of ratings, and the page between them."""
