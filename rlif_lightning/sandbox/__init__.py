"""Runs code that a model wrote in other processes, locked down, that answer in literals.

Files in reading order: ``pool.py`` (what a trainer calls), ``isolation.py`` (the levels, which one
this machine has, how a process is started in it), ``channel.py`` and ``literals.py`` (messages and
the values in them). These run inside: ``lockdown.py`` and ``seccomp.py`` (giving up permissions),
``candidate.py`` (runs the model's code), ``judge.py`` (runs a data set's tests against it
from a process of its own), ``start.py`` (entry point of both).

What runs inside uses the standard library alone and imports relatively, because there this folder
is a package by itself: a sandboxed process must not load torch. So nothing is imported here.
"""
