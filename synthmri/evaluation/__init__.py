"""Images and features -> numbers: pure functions; docs/evaluation.md says what each may be called."""
