"""The REST API of this app, and what the other apps' parts of it stand on."""
