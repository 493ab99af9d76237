"""This app's part of the REST API: what runs, what was decided about it, and what broke."""
