"""What observes a training: one concept a module, none of them knowing the run that uses it.

Importing any of these imports torch; the run does so when it starts, never earlier.
"""
