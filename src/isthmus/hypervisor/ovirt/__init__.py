"""oVirt: a level as a cluster CPU type."""
