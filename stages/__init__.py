"""Verbs: one thin file a DVC stage. Paths come in as arguments, files go out."""
