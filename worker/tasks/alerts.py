"""Looks for what somebody should be told about."""

from __future__ import annotations
