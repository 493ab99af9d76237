"""The pages: sign-in, operator console, tenant dashboard, and what they share."""
