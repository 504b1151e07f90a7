"""Conversations: their one canonical form, the base's chat template, and the turns of the assistant as token ids."""
