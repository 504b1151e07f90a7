"""The commands of `kitae`, one module a subject. Importing one loads click and nothing heavier."""
