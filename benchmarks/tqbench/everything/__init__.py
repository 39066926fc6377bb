"""`tq bench all`: every suite in one run, each claim beside the paper's value and the review's."""
