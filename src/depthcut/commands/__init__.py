"""The command line, a file for each command: words to options, options to a recipe, results to words."""
