"""Experiments: which arm of what a request is in, and what came of it.

`document` is what somebody writes, `assign` reads it for a request, `forced` lets a tester choose an arm.
"""
