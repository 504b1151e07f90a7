"""The commands of `kitae`, one module per subject: arguments in, tables out. Imports nothing heavier than click."""
