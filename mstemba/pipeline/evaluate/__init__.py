"""The stage `evaluate`: predictions against labels."""
