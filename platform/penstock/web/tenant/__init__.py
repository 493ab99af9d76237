"""The pages of one tenant, for its members: keys, quick start, playground, usage, members, limits, audit."""
