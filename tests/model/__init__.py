"""Tests of the wrapped network and of several held as one."""
