"""Runs of one base model carried out together: step by step in one pass, each with its own records and its own end."""

from __future__ import annotations
