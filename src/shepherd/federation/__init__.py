"""Clients behind one method: where they run is nobody else's business."""
