"""Token ids to text: the loop, beams, drafts, sessions."""
