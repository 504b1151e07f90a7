"""The commands of `kitae`, one module per subject: arguments in, tables out. Imports click and nothing heavier."""
