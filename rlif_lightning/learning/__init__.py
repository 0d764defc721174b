"""From scores to optimiser steps: advantages, losses, objectives, the update and the optimiser."""
