"""The commands that speak to an installation over its REST API, from any machine. Nothing here imports Django."""
