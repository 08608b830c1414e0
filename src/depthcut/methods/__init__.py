"""Which units leave, in which order: one file a search. It returns a path; cutting it earlier is a smaller plan."""
