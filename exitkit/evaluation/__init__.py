"""Comparisons: entries under the same seeds or images, beside fewer steps and their own schedules."""
