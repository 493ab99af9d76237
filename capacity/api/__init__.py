"""This app's part of the REST API: what there is, what is sold of it, and what was used."""
