"""Where images and questions come from: scenes made here, and readers of public data sets."""
