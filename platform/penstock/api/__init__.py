"""The REST API as a whole: addresses, schema, documentation."""
