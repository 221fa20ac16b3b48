"""What the demo model can talk about: one module per subject, each with a function that makes one exchange."""
