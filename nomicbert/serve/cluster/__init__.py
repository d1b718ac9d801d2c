"""A replica of the server on Ray, what it has, and how many there are."""
