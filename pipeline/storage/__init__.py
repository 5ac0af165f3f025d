"""Bytes that are whole or absent: files, arrays, shards, locks, places."""
