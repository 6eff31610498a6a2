"""Plots in scikit-learn's manner: displays that are computed, kept and drawn.

Each display is made by ``from_estimator`` or ``from_predictions``, holds its data as attributes and
draws them with ``plot(ax=None)``, again and elsewhere if need be. `maps` owns those that show
heatmaps, `curves` and `tables` the others; `figures` is the one module that knows matplotlib, which
is optional and imported when something is drawn. Nothing here runs a network itself or learns.
"""

from defectcam.plots.curves import HistoryDisplay, PROCurveDisplay, ThresholdDisplay
from defectcam.plots.maps import DefectDensityDisplay, HeatmapGridDisplay, LocalizationDisplay
from defectcam.plots.tables import TypeConfusionDisplay

__all__ = [
    "DefectDensityDisplay",
    "HeatmapGridDisplay",
    "HistoryDisplay",
    "LocalizationDisplay",
    "PROCurveDisplay",
    "ThresholdDisplay",
    "TypeConfusionDisplay",
]
