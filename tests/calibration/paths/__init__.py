"""Budgets and bounds."""
