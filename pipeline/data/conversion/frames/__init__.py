"""The frame of an image that its boxes refer to: turned upright or as stored, and of which size."""
