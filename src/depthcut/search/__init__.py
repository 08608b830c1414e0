"""Which units leave, in which order: one file a search. A search returns a path; cutting it earlier is a smaller plan."""
