"""The hbm tier: slots on a torch device, and what runs over them there."""
