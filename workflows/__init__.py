"""Recipes: a dataset, a backbone, and the settings of every stage."""
