"""Stands in for the xmanager package in tests: nothing is run, and what was asked for is written to $RECORD as JSON.

Names and signatures are those of xmanager 0.8.5, as far as launch/xmanager.py uses them.
"""
