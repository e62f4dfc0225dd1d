"""Pictures, figures and pages by which people judge data and detectors."""

from pipeline.reports.curves import pr_curves
from pipeline.reports.pictures import (
    Boxes,
    contact_sheet,
    draw_boxes,
    draw_detections,
    side_by_side,
)

__all__ = ["Boxes", "contact_sheet", "draw_boxes", "draw_detections", "pr_curves", "side_by_side"]
