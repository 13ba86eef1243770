"""The one training loop and what it stands on. It knows methods through their contract only."""
