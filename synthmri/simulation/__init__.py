"""Imaginary people: heads from an atlas and signal equations, the cohort made of them, and pretraining on them."""
