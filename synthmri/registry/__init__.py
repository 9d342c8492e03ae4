"""Which models may become champion, and how they get into MLflow and are served from it."""
