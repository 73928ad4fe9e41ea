"""Every knob once: type, unit, range, default and help.

`recipe` has the sections of a training recipe; `options` what several verbs share. The command
line and Python read the same objects.
"""
