"""Train an inspector of solar cells on real defects, test it, look at what it found.

    python examples/solar_cells.py

The electroluminescence images come with the package elpv-dataset (Buerhop-Lutz et al., CC BY-NC-SA
4.0). A cell counts as defective when its annotated probability of a defect is at least one half. A
part of the images is used, so that this ends within a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from sklearn.model_selection import train_test_split

from defectcam import DefectCAMClassifier
from defectcam.datasets import load_elpv
from defectcam.metrics import defect_recall_score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-images", type=int, default=700, help="images to use (default: 700)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels (default: 224)")
    parser.add_argument("--max-epochs", type=int, default=6, help="epochs (default: 6)")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder to write into")
    options = parser.parse_args()

    cells = load_elpv()
    y = np.where(cells.is_defect, "anomaly", "good")
    images, _, y, _ = train_test_split(
        cells.images, y, train_size=options.n_images, stratify=y, random_state=0
    )
    X_train, X_test, y_train, y_test = train_test_split(
        images, y, test_size=0.3, stratify=y, random_state=0
    )
    print(f"Training on {len(X_train)} solar cells, {np.sum(y_train == 'anomaly')} defective.")
    started = time.perf_counter()
    clf = DefectCAMClassifier(
        image_size=options.image_size, max_epochs=options.max_epochs, random_state=0, verbose=1
    )
    clf.fit(X_train, y_train)
    print(f"Fitted in {time.perf_counter() - started:.0f} s.\n")

    found = clf.localize(list(X_test))
    y_pred = np.array([f.label for f in found])
    print(f"On {len(X_test)} cells it has not seen:")
    print(f"  balanced accuracy  {balanced_accuracy_score(y_test, y_pred):.3f}")
    print(f"  defect recall      {defect_recall_score(y_test, y_pred, pos_label='anomaly'):.3f}")
    print("  confusion matrix          called anomaly   called good")
    for label, row in zip(clf.classes_, confusion_matrix(y_test, y_pred), strict=True):
        print(f"    {label:<20} {row[0]:>16d} {row[1]:>13d}")

    overlays = options.output / "overlays"
    overlays.mkdir(parents=True, exist_ok=True)
    most_defective = sorted(range(len(found)), key=lambda i: -found[i].probability)[:24]
    for rank, i in enumerate(most_defective):
        name = f"{rank:02d}_{y_test[i]}_p{found[i].probability:.2f}.png"
        found[i].save(overlays / name, overwrite=True)
    clf.save(options.output / "solar_cells.safetensors")

    print(f"""
Wrote {len(most_defective)} overlays with heatmap and boxes to {overlays}/
      and the model to {options.output / "solar_cells.safetensors"}

Next, with your own parts in one sub-folder per class (parts/good, parts/scratch, ...):
  defectcam fit parts -o part.safetensors
  defectcam localize part.safetensors new_images -o found""")


if __name__ == "__main__":
    main()
